#include "comm/sim_ranks.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "comm/attendance.h"
#include "comm/local_ops.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

Nanos TimeFor(Bytes bytes, double bytes_per_second) {
  return Nanos(static_cast<int64_t>(static_cast<double>(bytes.value()) / bytes_per_second * 1e9));
}

// Steps of a tree over so many.
int64_t Steps(uint32_t n) { return n <= 1 ? 0 : std::bit_width(n - 1); }

class SimRank;

// What the ranks of a group share. Lives as long as any of them, or something of it is to happen.
class SimGroup : public std::enable_shared_from_this<SimGroup> {
 public:
  SimGroup(SimNetwork* network, const CommOptions& options)
      : network_(network), options_(options), attendance_(network->ranks()) {
    for (uint32_t r = 0; r < network->ranks(); ++r) seats_.emplace_back(Rank(r), network->ranks());
  }

  void Enter(Rank rank, SimRank* member) { seat(rank).member = member; }
  void Leave(Rank rank) {
    seat(rank).member = nullptr;
    Break(attendance_.Leave(rank));
  }
  void Enqueue(Rank rank, CommOp* op);
  void Break(const absl::Status& why);

  SimWorld* world() { return network_->world(); }
  const CommOptions& options() const { return options_; }

 private:
  struct Seat {
    Seat(Rank rank, uint32_t ranks) : part(rank, ranks) {}
    SimRank* member = nullptr;
    IntrusiveList<CommOp> queue;
    CommOp* first = nullptr;  // in line: it is in the queue no more
    uint64_t number = 0;      // of those that were the first in line
    LocalPart part;
  };
  Seat& seat(Rank rank) { return seats_[rank.value()]; }

  // Calls `then` after `delay`, if the rank's first operation is still the same and nothing broke.
  template <typename F>
  void After(Nanos delay, Rank rank, F then) {
    world()->At(world()->Now() + delay,
                [group = shared_from_this(), rank, number = seat(rank).number, then] {
                  if (group->broken_.ok() && group->seat(rank).number == number) then();
                });
  }

  void TakeNext(Rank rank);
  void AskFence(Rank rank, Nanos interval);
  void Come(Rank rank);
  void Begin(Rank rank);
  void EndFirst(Rank rank, const absl::Status& status);

  SimNetwork* const network_;
  const CommOptions options_;
  Attendance attendance_;
  std::vector<Seat> seats_;
  absl::Status broken_;
};

class SimRank final : public Communicator {
 public:
  SimRank(std::shared_ptr<SimGroup> group, Rank rank, uint32_t ranks)
      : Communicator(rank, ranks), group_(std::move(group)) {
    group_->Enter(rank, this);
  }
  ~SimRank() override { (void)Close(); }

  absl::Status Close() override {
    if (closed_) return close_status_;
    SimWorld* const world = group_->world();
    const TimePoint until = world->Now() + group_->options().close_timeout;
    while (pending() > 0 && world->RunNext(until)) {
    }
    if (pending() > 0) {
      Abort(absl::CancelledError(
          fmt::format("rank {} was closed with {} operations pending", rank().value(), pending())));
    }
    closed_ = true;
    close_status_ = status();
    Break(absl::CancelledError(fmt::format("rank {} is closed", rank().value())));
    group_->Leave(rank());
    return close_status_;
  }

  std::string description() const override {
    return fmt::format("{} simulated ranks in virtual time", ranks());
  }

  void OnBroken(const absl::Status& why) { Break(why); }
  void EndOp(CommOp* op, const absl::Status& status) { End(op, status, group_->world()->Now()); }

 private:
  void Start(CommOp* op) override {
    if (const absl::Status why = status(); !why.ok()) return EndOp(op, why);
    group_->Enqueue(rank(), op);
  }
  void Interrupt(const absl::Status& why) override {
    group_->Break(absl::UnavailableError(
        fmt::format("rank {} was aborted: {}", rank().value(), Message(why))));
  }

  const std::shared_ptr<SimGroup> group_;
  bool closed_ = false;
  absl::Status close_status_;
};

void SimGroup::Enqueue(Rank rank, CommOp* op) {
  seat(rank).queue.Push(op);
  if (seat(rank).first == nullptr) TakeNext(rank);
}

// The first error stays; what is pending ends with what each rank was broken by.
void SimGroup::Break(const absl::Status& why) {
  if (why.ok() || !broken_.ok()) return;
  broken_ = why;
  world()->Log(fmt::format("group breaks: {}", Message(why)));
  for (Seat& seat : seats_) {
    if (seat.member == nullptr) continue;
    seat.member->OnBroken(why);
    if (seat.first != nullptr) EndFirst(seat.member->rank(), seat.member->status());
    while (!seat.queue.empty()) seat.member->EndOp(seat.queue.Pop(), seat.member->status());
  }
}

void SimGroup::TakeNext(Rank rank) {
  Seat& seat = this->seat(rank);
  CommOp* const op = seat.first = seat.queue.Pop();
  ++seat.number;
  op->started = world()->Now();
  const SimFault fault = world()->faults()->Next(SimSeam::kRank);
  if (fault == SimFault::kError || fault == SimFault::kRefused) {
    return After(Nanos(0), rank, [this, rank] {
      Break(absl::UnavailableError(fmt::format("rank {}: simulated error in {}", rank.value(),
                                               OpName(*this->seat(rank).first))));
    });
  }
  After(std::min(options_.timeout, kForever - op->started), rank, [this, rank] {
    const bool came = attendance_.op(rank) != nullptr;
    Break(absl::DeadlineExceededError(
        came ? attendance_.WaitsFor(rank) + ", which is too long"
             : fmt::format(
                   "rank {}: what {} was ordered after, or its own part of it, has not ended",
                   rank.value(), OpName(*this->seat(rank).first))));
  });
  After(world()->Delay(fault), rank, [this, rank] { AskFence(rank, Nanos(1000)); });
}

void SimGroup::AskFence(Rank rank, Nanos interval) {
  const Fence* const fence = seat(rank).first->after;
  if (fence == nullptr || fence->Complete()) return Come(rank);
  After(interval, rank, [this, rank, next = interval + interval / 8] { AskFence(rank, next); });
}

void SimGroup::Come(Rank rank) {
  const absl::StatusOr<bool> begins = attendance_.Come(rank, seat(rank).first);
  if (!begins.ok()) return Break(begins.status());
  if (*begins) Begin(rank);
}

void SimGroup::Begin(Rank rank) {
  std::vector<Rank> participants;
  attendance_.ForParticipants(rank, [&](Rank other) { participants.push_back(other); });
  const std::span<CommOp* const> all = attendance_.ops();
  const std::vector<CommOp*> ops(all.begin(), all.end());
  const SimNetwork::Span span = network_->Occupy(participants, ops);
  world()->Log(fmt::format("{} begins", OpName(*ops[rank.value()])));
  const auto takes = static_cast<uint64_t>((span.end - world()->Now()).count());
  // The ends are queued by the move, which they must not overtake when all come at one time.
  After(Nanos(static_cast<int64_t>(world()->Uniform(0, takes))), rank, [=, this] {
    for (int phase = 0; phase < LocalPart::phases(ops[rank.value()]->kind); ++phase) {
      for (const Rank other : participants) seat(other).part.Do(*ops[other.value()], ops, phase);
    }
    for (const Rank other : participants) {
      const Nanos jitter(static_cast<int64_t>(world()->Uniform(0, 2'000)));
      After(span.end - world()->Now() + jitter, other,
            [this, other] { EndFirst(other, absl::OkStatus()); });
    }
  });
}

void SimGroup::EndFirst(Rank rank, const absl::Status& status) {
  Seat& seat = this->seat(rank);
  CommOp* const op = std::exchange(seat.first, nullptr);
  ++seat.number;
  attendance_.Go(rank);
  world()->Log(fmt::format("{} of rank {} ends", OpName(*op), rank.value()));
  seat.member->EndOp(op, status);
  if (broken_.ok() && !seat.queue.empty()) TakeNext(rank);
}

}  // namespace

SimTraffic TrafficOf(const CommOp& op, Rank self, uint32_t ranks, uint32_t ranks_per_host) {
  const uint32_t host = self.value() / ranks_per_host;
  const uint32_t first = host * ranks_per_host;
  const uint32_t last = std::min(first + ranks_per_host, ranks);
  const int64_t links = last - first;  // of the host
  const auto size = [](ConstMemoryView view) { return Bytes(static_cast<int64_t>(view.size())); };
  // Of views by rank: those of other hosts, of this host's other ranks.
  const auto split = [&](const auto& views) {
    SimTraffic traffic;
    for (uint32_t r = 0; r < views.size(); ++r) {
      const bool here = r >= first && r < last;
      if (r != self.value()) (here ? traffic.local : traffic.network) += size(views[r]);
    }
    return traffic;
  };
  // What came over the network for the host is passed on in it.
  const auto shared = [&](SimTraffic all) {
    const Bytes own = all.network / links;
    return SimTraffic{all.local + all.network - own, own};
  };
  switch (op.kind) {
    case CommKind::kAllGather:
      return shared(split(op.receive));
    case CommKind::kReduceScatter:
      return shared(split(op.send));
    case CommKind::kAllReduce: {
      const Bytes here = size(op.send[0]) * links / ranks;
      const SimTraffic once = shared({here - here / links, size(op.send[0]) - here});
      return {once.local * 2, once.network * 2};
    }
    case CommKind::kAllToAll: {
      const SimTraffic sent = split(op.send), received = split(op.receive);
      return {std::max(sent.local, received.local), std::max(sent.network, received.network)};
    }
    case CommKind::kBroadcast: {
      const Bytes whole = size(op.send.empty() ? ConstMemoryView(op.receive[0]) : op.send[0]);
      const Bytes own = ranks > ranks_per_host ? whole / links : Bytes(0);
      return {links > 1 ? whole - own : Bytes(0), own};
    }
    case CommKind::kSend:
    case CommKind::kReceive: {
      const Bytes whole = size(op.send.empty() ? ConstMemoryView(op.receive[0]) : op.send[0]);
      const bool here = op.peer.value() >= first && op.peer.value() < last;
      return here ? SimTraffic{whole, Bytes(0)} : SimTraffic{Bytes(0), whole};
    }
    case CommKind::kBarrier:
      break;
  }
  return {};
}

std::vector<std::unique_ptr<Communicator>> SimNetwork::MakeGroup(const CommOptions& options) {
  const auto group = std::make_shared<SimGroup>(this, options);
  std::vector<std::unique_ptr<Communicator>> members;
  for (uint32_t r = 0; r < ranks(); ++r)
    members.push_back(std::make_unique<SimRank>(group, Rank(r), ranks()));
  return members;
}

SimNetwork::Span SimNetwork::Occupy(std::span<const Rank> participants,
                                    std::span<CommOp* const> ops) {
  TimePoint begin = world_->Now();
  for (const Rank rank : participants) {
    const Links& links = links_[rank.value()];
    begin = std::max({begin, links.local_free, links.network_free});
  }
  const uint32_t hosts = (ranks() + options_.ranks_per_host - 1) / options_.ranks_per_host;
  const Nanos latency = options_.local_latency * Steps(std::min(ranks(), options_.ranks_per_host)) +
                        options_.network_latency * Steps(hosts);
  TimePoint end = begin + latency;
  for (const Rank rank : participants) {
    const SimTraffic traffic =
        TrafficOf(*ops[rank.value()], rank, ranks(), options_.ranks_per_host);
    Links& links = links_[rank.value()];
    links.local_free = begin + TimeFor(traffic.local, options_.local_bytes_per_second);
    links.network_free = begin + TimeFor(traffic.network, options_.network_bytes_per_second);
    end = std::max({end, links.local_free + latency, links.network_free + latency});
  }
  return {begin, end};
}

}  // namespace sluice
