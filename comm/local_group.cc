#include "comm/local_group.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr const char* kGone = "is gone: its process has ended";
constexpr int kCalls = 2;                         // that are under way, as a rule
constexpr uint64_t kListMax = uint64_t{1} << 24;  // longer lists are nobody's
constexpr int kLastTries = 50;                    // of a millisecond each

void Say(const std::string& words, char* error, size_t error_bytes) {
  const size_t length = std::min(words.size(), error_bytes - 1);
  std::memcpy(error, words.data(), length);
  error[length] = '\0';
}

}  // namespace

LocalGroup::LocalGroup(Rank rank, std::vector<Peer> peers, const Limits& limits)
    : rank_(rank.value()),
      limits_(limits),
      description_(fmt::format(
          "processes of one host: sockets, and memory read {}",
          std::ranges::any_of(peers, [](const Peer& p) { return p.socket.open() && !p.readable; })
              ? "through them"
              : "directly")),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      packet_(sizeof(Head) + limits.piece_max) {
  for (Peer& peer : peers) links_.emplace_back(std::move(peer));
  for (int i = 0; i < kCalls; ++i) AddCall();
}

void LocalGroup::AddCall() {
  spare_.push_back(std::make_unique<LocalCall>(rank_, static_cast<uint32_t>(links_.size())));
}

sluice_comm_table LocalGroup::table() {
  return {
      .struct_size = sizeof(sluice_comm_table),
      .context = this,
      .rank = rank_,
      .ranks = static_cast<uint32_t>(links_.size()),
      .start = [](void* context, const sluice_comm_call* call, uint64_t, char*, size_t) -> int32_t {
        return static_cast<LocalGroup*>(context)->Start(*call);
      },
      .wait = [](void* context, uint64_t, int32_t timeout_ms, char* error, size_t bytes)
          -> int32_t { return static_cast<LocalGroup*>(context)->Wait(timeout_ms, error, bytes); },
      .abort = [](void* context,
                  const char* why) { static_cast<LocalGroup*>(context)->Abort(why); },
      .close =
          [](void* context) {
            auto* const self = static_cast<LocalGroup*>(context);
            self->Leave();
            delete self;
          },
      .description = description_.c_str()};
}

int32_t LocalGroup::Start(const sluice_comm_call& given) {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) AddCall();
  std::unique_ptr<LocalCall> call = std::move(spare_.front());
  spare_.pop_front();
  call->Take(given);
  calls_.push_back(std::move(call));
  return SLUICE_COMM_ENDED;
}

bool LocalGroup::NextExchange() {
  if (!call_->NextExchange()) return false;
  for (uint32_t r = 0; r < links_.size(); ++r) {
    Link& link = links_[r];
    link.out = call_->Concerns(r) ? Link::Out::kOffer : Link::Out::kNothing;
    link.in = call_->Concerns(r) ? Link::In::kOffer : Link::In::kNothing;
    link.sent = link.received = 0;
  }
  return true;
}

int32_t LocalGroup::Wait(int32_t timeout_ms, char* error, size_t error_bytes) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  if (call_ == nullptr) {
    const std::lock_guard lock(mutex_);
    call_ = std::move(calls_.front());
    calls_.pop_front();
  }
  bool well = WhyFailed().empty();
  if (well && !call_->begun()) NextExchange();
  while (well) {
    for (uint32_t r = 0; well && r < links_.size(); ++r)
      well = r == rank_ || (SendTo(r) && ReceiveFrom(r) && SendTo(r));
    well = well && !aborted_;
    if (!well) break;
    if (Ready()) {
      if (NextExchange()) continue;
      EndCall();
      return SLUICE_COMM_ENDED;
    }
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      Say(AwaitedRanks(), error, error_bytes);
      return SLUICE_COMM_PENDING;
    }
    well = Sleep(static_cast<int32_t>(left.count()));
  }
  EndCall();
  Say(WhyFailed(), error, error_bytes);
  const std::lock_guard lock(ending_);  // nobody takes the word any more that this rank was read
  return SLUICE_COMM_FAILED;
}

std::string LocalGroup::AwaitedRanks() const {
  std::string awaited;
  for (uint32_t r = 0; r < links_.size(); ++r) {
    if (links_[r].in != Link::In::kNothing || links_[r].out == Link::Out::kReads)
      awaited += fmt::format("{}{}", awaited.empty() ? "rank " : ", ", r);
  }
  return awaited;
}

void LocalGroup::EndCall() {
  const std::lock_guard lock(mutex_);
  spare_.push_back(std::move(call_));
}

bool LocalGroup::Ready() const {
  return std::ranges::all_of(links_, [](const Link& link) {
    return link.out == Link::Out::kNothing && link.in == Link::In::kNothing && !link.owes_word;
  });
}

LocalGroup::Head LocalGroup::Described(Packet packet) const {
  const bool has_root = call_->kind() == CommKind::kBroadcast;
  return {.packet = packet,
          .kind = static_cast<uint32_t>(call_->kind()),
          .type = static_cast<uint32_t>(call_->type()),
          .root = has_root ? call_->peer() : 0,
          .tag = call_->tag()};
}

bool LocalGroup::SendTo(uint32_t rank) {
  Link& link = links_[rank];
  const Pieces& pieces = call_->send(rank);
  while (link.owes_word || link.out == Link::Out::kOffer || link.out == Link::Out::kPieces) {
    Head head = Described(link.owes_word                  ? Packet::kHaveRead
                          : link.out == Link::Out::kOffer ? Packet::kOffer
                                                          : Packet::kPiece);
    size_t data = 0;
    const bool direct = link.reads && pieces.bytes > limits_.inline_max;
    if (!link.owes_word) {
      head.bytes = pieces.bytes;
      if (direct) {
        head.list = reinterpret_cast<uint64_t>(pieces.list.data());
        head.count = pieces.list.size();
      } else if (link.out == Link::Out::kPieces || pieces.bytes <= limits_.inline_max) {
        data = std::min(pieces.bytes - link.sent, limits_.piece_max);
      }
      pieces.CopyOut(link.sent, std::span(packet_).subspan(sizeof(Head), data));
    }
    std::memcpy(packet_.data(), &head, sizeof(head));
    switch (link.socket.Send(std::span(packet_).first(sizeof(Head) + data))) {
      case Socket::Result::kNotNow:
        return true;
      case Socket::Result::kEnded:  // why may still be on its way
        return OnEnd(rank) && (!link.ended || Fail(Named(rank, "has left, and is needed")));
      case Socket::Result::kDone:
        break;
    }
    if (std::exchange(link.owes_word, false)) continue;
    link.sent += data;
    if (direct || link.sent == pieces.bytes) {
      const bool waits = direct || call_->kind() == CommKind::kSend;
      link.out = waits ? Link::Out::kReads : Link::Out::kNothing;
    } else {
      link.out = Link::Out::kPieces;
    }
  }
  return true;
}

bool LocalGroup::ReceiveFrom(uint32_t rank) {
  Link& link = links_[rank];
  while (link.in != Link::In::kNothing || link.out == Link::Out::kReads) {
    if (!link.early.empty()) {
      const std::vector<std::byte> packet = std::move(link.early.front());
      link.early.pop_front();
      if (!OnPacket(rank, packet.data(), packet.size())) return false;
      continue;
    }
    if (link.ended) return Fail(Named(rank, "has left, and is needed"));
    size_t size = 0;
    switch (link.socket.Receive(packet_, &size)) {
      case Socket::Result::kNotNow:
        return true;
      case Socket::Result::kEnded:
        if (!OnEnd(rank)) return false;
        continue;
      case Socket::Result::kDone:
        if (!OnPacket(rank, packet_.data(), size)) return false;
    }
  }
  return true;
}

bool LocalGroup::OnPacket(uint32_t rank, const std::byte* packet, size_t size) {
  Link& link = links_[rank];
  Head head;
  if (size < sizeof(head)) return Fail(Named(rank, "does not speak as this one does"));
  std::memcpy(&head, packet, sizeof(head));
  const std::byte* const data = packet + sizeof(head);
  size -= sizeof(head);
  switch (head.packet) {
    case Packet::kOffer:
      return OnOffer(rank, head, data, size);
    case Packet::kPiece:
      if (link.in != Link::In::kPieces || size > call_->receive(rank).bytes - link.received) break;
      call_->receive(rank).CopyIn(link.received, std::span(data, size));
      link.received += size;
      if (link.received < call_->receive(rank).bytes) return true;
      link.in = Link::In::kNothing;
      link.owes_word = call_->kind() == CommKind::kReceive;
      return true;
    case Packet::kHaveRead:
      if (link.out != Link::Out::kReads) break;
      link.out = Link::Out::kNothing;
      return true;
    case Packet::kAborted:  // with why
      return Fail(std::string(reinterpret_cast<const char*>(data), size));
    case Packet::kLeft:  // nothing follows, and something was wanted
      return Fail(Named(rank, "has left, and is needed"));
  }
  return Fail(Named(rank, "does not speak as this one does"));
}

bool LocalGroup::OnOffer(uint32_t rank, const Head& head, const std::byte* data, size_t size) {
  Link& link = links_[rank];
  const Head own = Described(Packet::kOffer);
  const auto kind = call_->kind() == CommKind::kReceive ? CommKind::kSend
                    : call_->kind() == CommKind::kSend  ? CommKind::kReceive
                                                        : call_->kind();
  if (link.in != Link::In::kOffer || head.kind != static_cast<uint32_t>(kind) ||
      head.tag != own.tag || head.root != own.root || (call_->adds() && head.type != own.type)) {
    const auto theirs = static_cast<CommKind>(std::min(head.kind, kCommKindCount - 1u));
    return Fail(fmt::format("rank {} calls {} with tag {}, rank {} {} with tag {}", rank_,
                            Name(call_->kind()), call_->tag(), rank, Name(theirs), head.tag));
  }
  const Pieces& to = call_->receive(rank);
  if (head.bytes != to.bytes) {
    return Fail(fmt::format("{} with tag {}: rank {} sends {} bytes to rank {}, which expects {}",
                            Name(kind), own.tag, rank, head.bytes, rank_, to.bytes));
  }
  if (head.list != 0) {
    if (!Read(rank, head)) return false;
    link.in = Link::In::kNothing;
    link.owes_word = true;
    return true;
  }
  if (size > to.bytes) return Fail(Named(rank, "does not speak as this one does"));
  to.CopyIn(0, std::span(data, size));
  link.received = size;
  link.in = size == to.bytes ? Link::In::kNothing : Link::In::kPieces;
  link.owes_word = link.in == Link::In::kNothing && call_->kind() == CommKind::kReceive;
  return true;
}

// What the peer offers, from its memory. If it fails meanwhile it may give its memory to others,
// and what is read is of no use; then it does not take the word that it was read.
bool LocalGroup::Read(uint32_t rank, const Head& head) {
  if (head.count == 0 || head.count > kListMax)
    return Fail(Named(rank, "does not speak as this one does"));
  const pid_t process = links_[rank].process;
  int why = theirs_.ReadList(process, head.list, head.count);
  for (size_t at = 0; why == 0 && at < head.bytes && !aborted_;)
    why = theirs_.Read(process, call_->receive(rank), limits_.read_max, &at);
  if (why == 0) return true;
  if (!OnEnd(rank)) return false;
  if (why == ESRCH) return Fail(Named(rank, kGone));
  return Fail(Named(rank, fmt::format("'s memory can't be read: {}", ErrnoName(why)).c_str()));
}

// The socket has ended: what came through it is looked at, for why.
bool LocalGroup::OnEnd(uint32_t rank) {
  Link& link = links_[rank];
  size_t size = 0;
  std::vector<std::byte> packet(packet_.size());
  while (!link.ended) {
    const Socket::Result result = link.socket.Receive(packet, &size);
    if (result == Socket::Result::kNotNow) break;
    link.ended = result == Socket::Result::kEnded;
    if (!link.ended)
      link.early.emplace_back(packet.begin(), packet.begin() + static_cast<ptrdiff_t>(size));
  }
  if (aborted_) return false;
  for (const std::vector<std::byte>& early : link.early) {
    Packet kind;
    std::memcpy(&kind, early.data(), sizeof(kind));
    if (kind == Packet::kAborted) return OnPacket(rank, early.data(), early.size());
    link.left = link.left || kind == Packet::kLeft;
  }
  return link.left || !link.ended || Fail(Named(rank, kGone));
}

bool LocalGroup::Sleep(int32_t timeout_ms) {
  waited_.clear();
  for (const Link& link : links_) {
    int16_t events = POLLRDHUP;
    if (link.in != Link::In::kNothing || link.out == Link::Out::kReads) events |= POLLIN;
    if (link.owes_word || link.out == Link::Out::kOffer || link.out == Link::Out::kPieces)
      events |= POLLOUT;
    waited_.push_back({.fd = link.ended ? -1 : link.socket.fd(), .events = events});
    waited_.push_back({.fd = link.ended ? -1 : link.exit.fd(), .events = POLLIN});
  }
  waited_.push_back({.fd = wake_.fd(), .events = POLLIN});
  if (poll(waited_.data(), waited_.size(), timeout_ms) <= 0) return true;
  for (size_t i = 0; i < links_.size(); ++i) {
    const auto r = static_cast<uint32_t>(i);
    const bool ended = (waited_[2 * i].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
    const bool exited = waited_[2 * i + 1].revents != 0;
    if ((ended || exited) && !OnEnd(r)) return false;
    if (exited && !links_[i].left && !links_[i].ended) return Fail(Named(r, kGone));
  }
  return true;
}

bool LocalGroup::Fail(std::string why) {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) failure_ = std::move(why);
  return false;
}

std::string LocalGroup::WhyFailed() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::string LocalGroup::Named(uint32_t rank, const char* what) const {
  return fmt::format("rank {}{}{}", rank, *what == '\'' ? "" : " ", what);
}

void LocalGroup::Abort(const char* words) {
  const std::lock_guard lock(ending_);
  if (aborted_.exchange(true)) return;
  const uint64_t one = 1;
  (void)!write(wake_.fd(), &one, sizeof(one));
  // The others hear what this one has heard: so all name the rank that it began with.
  // The words of a failure here count more.
  const std::string own = WhyFailed();
  const std::string why = own.empty() ? fmt::format("rank {} was aborted: {}", rank_, words) : own;
  std::vector<std::byte> packet(sizeof(Head) + std::min(why.size(), limits_.piece_max));
  const Head head{.packet = Packet::kAborted};
  std::memcpy(packet.data(), &head, sizeof(head));
  std::memcpy(packet.data() + sizeof(head), why.data(), packet.size() - sizeof(head));
  SayLast(packet);
}

void LocalGroup::Leave() {
  const Head head{.packet = Packet::kLeft};
  if (!aborted_) SayLast(std::as_bytes(std::span(&head, 1)));
}

// To everybody; who does not make room for it finds that nothing more comes. Shut, since a forked
// child may have the sockets open.
void LocalGroup::SayLast(std::span<const std::byte> packet) {
  for (int tries = kLastTries; const Link& link : links_) {
    if (!link.socket.open()) continue;
    while (link.socket.Send(packet) == Socket::Result::kNotNow && tries-- > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    link.socket.Shut();
  }
}

}  // namespace sluice
