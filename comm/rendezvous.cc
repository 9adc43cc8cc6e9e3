#include "comm/rendezvous.h"

#include <algorithm>
#include <span>
#include <utility>

#include "comm/op_rules.h"
#include "comm/run_op.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

template <typename T>
MemoryView ViewOf(T* value) {
  return std::as_writable_bytes(std::span(value, 1));
}

}  // namespace

Rendezvous::Rendezvous(std::unique_ptr<Communicator> control)
    : control_(std::move(control)),
      ends_(EndsOfOneEach(control_->ranks())),
      cards_(std::make_unique<std::vector<Card>>(control_->ranks())) {
  for (Card& card : *cards_) views_.push_back(ViewOf(&card));
}

absl::Status Rendezvous::Run(CommOp* op) {
  absl::Status status = RunOp(op, control_.get());
  // Somebody may write there at any time: it stays for ever.
  if (op->memory_lost) {
    static_cast<void>(cards_.release());
    cards_ = std::make_unique<std::vector<Card>>(control_->ranks());
    for (size_t r = 0; r < views_.size(); ++r) views_[r] = ViewOf(&(*cards_)[r]);
  }
  return status;
}

absl::Status Rendezvous::GatherCards() {
  const ConstMemoryView mine = views_[control_->rank().value()];
  CommOp op;
  op.kind = CommKind::kAllGather;
  op.send = {std::span(&mine, 1), {}};
  op.receive = {views_, ends_};
  return Run(&op);
}

// The lower rank speaks first.
absl::Status Rendezvous::SwapCards(Rank peer) {
  const Rank self = control_->rank();
  for (const bool lower_sends : {true, false}) {
    const ConstMemoryView mine = views_[self.value()];
    CommOp op;
    op.peer = peer;
    if (lower_sends == (self < peer)) {
      op.kind = CommKind::kSend;
      op.send = {std::span(&mine, 1), {}};
    } else {
      op.kind = CommKind::kReceive;
      op.receive = {std::span(&views_[peer.value()], 1), {}};
    }
    SLUICE_RETURN_IF_ERROR(Run(&op));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Rendezvous::Meet(const CommOp& op, uint32_t marks) {
  const uint32_t self = control_->rank().value();
  (*cards_)[self] = {.tag = op.tag,
                     .sent_sum = op.sizes().sent_sum,
                     .received_sum = op.sizes().received_sum,
                     .send_bytes = op.sizes().send.size(),
                     .receive_bytes = op.sizes().receive.size(),
                     .peer = op.peer.value(),
                     .marks = marks,
                     .kind = static_cast<uint32_t>(op.kind),
                     .type = static_cast<uint32_t>(op.type)};
  if (!IsPointToPoint(op.kind)) {
    SLUICE_RETURN_IF_ERROR(GatherCards());
    return Agree(0, control_->ranks() - 1, 1);
  }
  SLUICE_RETURN_IF_ERROR(SwapCards(op.peer));
  const uint32_t first = std::min(self, op.peer.value()), last = std::max(self, op.peer.value());
  return Agree(first, last, last - first);
}

absl::StatusOr<uint32_t> Rendezvous::Agree(uint32_t first, uint32_t last, uint32_t step) const {
  // As large as the card says, and nobody looks at the memory.
  struct Shown {
    explicit Shown(const Card& card)
        : sent(static_cast<const std::byte*>(nullptr), card.send_bytes),
          received(static_cast<std::byte*>(nullptr), card.receive_bytes) {
      op.kind = static_cast<CommKind>(card.kind);
      op.type = static_cast<FloatType>(card.type);
      op.peer = Rank(card.peer);
      op.tag = card.tag;
      op.send = {std::span(&sent, 1), {}};
      op.receive = {std::span(&received, 1), {}};
    }
    ConstMemoryView sent;
    MemoryView received;
    CommOp op;
  };
  const std::vector<Card>& cards = *cards_;
  uint64_t difference = 0;
  uint32_t marks = ~uint32_t{0};
  const Card& reference = cards[first];
  for (uint32_t r = first; r <= last; r += step) {
    const Card& card = cards[r];
    if (card.kind >= kCommKindCount || card.type > static_cast<uint32_t>(FloatType::kF16))
      return absl::FailedPreconditionError(fmt::format("rank {} says what nobody knows", r));
    const bool same = card.kind == reference.kind && card.tag == reference.tag &&
                      card.type == reference.type && card.peer == reference.peer;
    if (!same) {
      const std::string what =
          DifferentCalls(Shown(reference).op, Rank(first), Shown(card).op, Rank(r));
      if (!what.empty()) return absl::FailedPreconditionError(what);
    }
    difference += card.sent_sum - card.received_sum;
    marks &= card.marks;
  }
  if (difference == 0) return marks;
  std::string sizes;
  for (uint32_t r = first; r <= last && sizes.size() < 300; r += step)
    sizes += fmt::format("{}rank {} sends {} bytes and expects {}", r == first ? "" : ", ", r,
                         cards[r].send_bytes, cards[r].receive_bytes);
  return absl::FailedPreconditionError(
      fmt::format("{} with tag {}: ranks expect other sizes than they are sent: {}",
                  Name(static_cast<CommKind>(reference.kind)), reference.tag, sizes));
}

absl::StatusOr<std::vector<uint64_t>> Rendezvous::Gather(uint64_t mine) {
  (*cards_)[control_->rank().value()] = {.tag = mine};
  SLUICE_RETURN_IF_ERROR(GatherCards());
  std::vector<uint64_t> all;
  for (const Card& card : *cards_) all.push_back(card.tag);
  return all;
}

absl::Status Rendezvous::TakeFirstRanks(MemoryView memory) {
  auto shared = std::make_unique<std::vector<std::byte>>(memory.begin(), memory.end());
  const MemoryView view(*shared);
  const ConstMemoryView sent = view;
  CommOp op;
  op.kind = CommKind::kBroadcast;
  op.peer = Rank(0);
  if (control_->rank() == Rank(0)) {
    op.send = {std::span(&sent, 1), {}};
  } else {
    op.receive = {std::span(&view, 1), {}};
  }
  absl::Status status = Run(&op);
  std::ranges::copy(*shared, memory.begin());
  if (op.memory_lost) static_cast<void>(shared.release());
  return status;
}

}  // namespace sluice
