#include "comm/sim_mirror.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/local_part.h"
#include "comm/op_rules.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

class MirrorRank;

// What the ranks that are there share.
class MirrorGroup : public std::enable_shared_from_this<MirrorGroup> {
 public:
  MirrorGroup(SimNetwork* network, double scale)
      : network_(network),
        scale_(scale),
        seats_(std::min(network->ranks(), network->options().ranks_per_host)),
        ops_(seats_.size()) {}

  void Enter(Rank rank, MirrorRank* member) { seats_[rank.value()].member = member; }
  void Leave(Rank rank);
  void Enqueue(Rank rank, CommOp* op);
  void Break(const absl::Status& why);
  SimWorld* world() { return network_->world(); }

 private:
  struct Seat {
    MirrorRank* member = nullptr;
    IntrusiveList<CommOp> queue;
  };

  void TakeNext(size_t rank);
  void Begin();
  void Finish();
  void Move(size_t rank);

  SimNetwork* const network_;
  const double scale_;
  std::vector<Seat> seats_;
  std::vector<CommOp*> ops_;  // by rank: what it has come to
  size_t came_ = 0;
  bool running_ = false;
  absl::Status broken_;
};

class MirrorRank final : public Communicator {
 public:
  MirrorRank(std::shared_ptr<MirrorGroup> group, Rank rank, uint32_t ranks,
             const CommOptions& options)
      : Communicator(rank, ranks, options, group->world()), group_(std::move(group)) {
    group_->Enter(rank, this);
  }
  ~MirrorRank() override { (void)Close(); }

  std::string description() const override {
    return fmt::format("{} simulated ranks in virtual time, of which one host's are there",
                       ranks());
  }
  void OnBroken(const absl::Status& why) { Break(why); }
  void EndOp(CommOp* op, const absl::Status& status) { End(op, status); }

 private:
  void Start(CommOp* op) override { group_->Enqueue(rank(), op); }
  void Interrupt(const absl::Status& why) override { group_->Break(why); }
  void Leave() override { group_->Leave(rank()); }
  bool AwaitIdle(Nanos longest) override {
    SimWorld* const world = group_->world();
    const TimePoint until = world->Now() + longest;
    while (pending() > 0 && world->RunNext(until)) {
    }
    return pending() == 0;
  }

  const std::shared_ptr<MirrorGroup> group_;
};

void MirrorGroup::Enqueue(Rank rank, CommOp* op) {
  if (!broken_.ok()) return seats_[rank.value()].member->EndOp(op, broken_);
  SLUICE_CHECK(op->kind == CommKind::kAllGather || op->kind == CommKind::kAllToAll ||
               op->kind == CommKind::kBarrier);
  SLUICE_CHECK(op->after == nullptr || op->after->Complete());
  seats_[rank.value()].queue.Push(op);
  TakeNext(rank.value());
}

void MirrorGroup::TakeNext(size_t rank) {
  if (ops_[rank] != nullptr || seats_[rank].queue.empty()) return;
  ops_[rank] = seats_[rank].queue.Pop();
  ops_[rank]->started = world()->Now();
  if (++came_ == seats_.size()) Begin();
}

void MirrorGroup::Begin() {
  for (size_t r = 1; r < ops_.size(); ++r) {
    if (ops_[r]->kind == ops_[0]->kind && ops_[r]->tag == ops_[0]->tag) continue;
    return Break(absl::FailedPreconditionError(
        DifferentCalls(*ops_[0], Rank(0), *ops_[r], Rank(static_cast<uint32_t>(r)))));
  }
  running_ = true;
  const Party all{0, static_cast<uint32_t>(ops_.size()) - 1, 1};
  const TimePoint end = network_->Occupy(all, ops_, scale_).end;
  world()->At(end, [group = shared_from_this()] {
    if (group->broken_.ok()) group->Finish();
  });
}

void MirrorGroup::Finish() {
  for (size_t r = 0; r < ops_.size(); ++r) Move(r);
  running_ = false;
  came_ = 0;
  std::vector<CommOp*> ended(ops_.size());
  std::swap(ended, ops_);
  for (size_t r = 0; r < ended.size(); ++r) seats_[r].member->EndOp(ended[r], absl::OkStatus());
  for (size_t r = 0; r < ended.size(); ++r) TakeNext(r);
}

// What rank `self` receives, from all hosts.
void MirrorGroup::Move(size_t self) {
  CommOp& own = *ops_[self];
  if (own.kind == CommKind::kBarrier) return;
  for (uint32_t r = 0; r < network_->ranks(); ++r) {
    const CommOp& other = *ops_[r % ops_.size()];
    const std::span<const ConstMemoryView> from = other.send[self];
    const std::span<const MemoryView> to = own.receive[r];
    const size_t sent = SizeOfAll(from), expected = SizeOfAll(to);
    size_t left = std::min(sent, expected);
    ViewCursor<ConstMemoryView> source(from, sent - left);
    ViewCursor<MemoryView> target(to, expected - left);
    while (left > 0) {
      const size_t n = std::min({source.here().size(), target.here().size(), left});
      if (source.here().data() != target.here().data())
        std::memmove(target.here().data(), source.here().data(), n);
      source.Advance(n);
      target.Advance(n);
      left -= n;
    }
  }
}

void MirrorGroup::Break(const absl::Status& why) {
  if (why.ok() || !broken_.ok()) return;
  broken_ = why;
  for (size_t r = 0; r < seats_.size(); ++r) {
    MirrorRank* const member = seats_[r].member;
    if (member == nullptr) continue;
    member->OnBroken(why);
    if (ops_[r] != nullptr) member->EndOp(std::exchange(ops_[r], nullptr), why);
    while (!seats_[r].queue.empty()) member->EndOp(seats_[r].queue.Pop(), why);
  }
}

void MirrorGroup::Leave(Rank rank) {
  seats_[rank.value()].member = nullptr;
  if (came_ > 0) {
    Break(absl::UnavailableError(
        fmt::format("rank {} has left the group, and others wait for it", rank.value())));
  }
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeMirroredGroup(SimNetwork* network,
                                                             const CommOptions& options,
                                                             double scale) {
  const auto group = std::make_shared<MirrorGroup>(network, scale);
  const uint32_t there = std::min(network->ranks(), network->options().ranks_per_host);
  std::vector<std::unique_ptr<Communicator>> members;
  for (uint32_t r = 0; r < there; ++r) {
    members.push_back(std::make_unique<MirrorRank>(group, Rank(r), network->ranks(), options));
  }
  return members;
}

}  // namespace sluice
