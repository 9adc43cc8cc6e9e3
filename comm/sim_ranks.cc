#include "comm/sim_ranks.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "comm/attendance.h"
#include "comm/local_part.h"
#include "comm/op_rules.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr Nanos kFencePollMax = std::chrono::microseconds(100);  // as ranks have it in real time

Nanos TimeFor(Bytes bytes, double bytes_per_second) {
  return Nanos(static_cast<int64_t>(static_cast<double>(bytes.value()) / bytes_per_second * 1e9));
}

// Steps of a tree over so many.
int64_t Steps(uint32_t n) { return n <= 1 ? 0 : std::bit_width(n - 1); }

class SimRank;

// What the ranks of a group share. Lives as long as any of them, or something of it is to happen.
class SimGroup : public std::enable_shared_from_this<SimGroup> {
 public:
  SimGroup(SimNetwork* network, Nanos timeout, double scale)
      : network_(network),
        timeout_(timeout),
        scale_(scale),
        attendance_(network->ranks()),
        seats_(network->ranks()),
        part_(network->ranks()) {}

  void Enter(Rank rank, SimRank* member) { seat(rank).member = member; }
  void Leave(Rank rank) {
    seat(rank).member = nullptr;
    Break(attendance_.Leave(rank));
  }
  void Enqueue(Rank rank, CommOp* op);
  void Break(const absl::Status& why);

  SimWorld* world() { return network_->world(); }
  bool broken() const { return !broken_.ok(); }

 private:
  struct Seat {
    SimRank* member = nullptr;
    IntrusiveList<CommOp> queue;
    CommOp* first = nullptr;  // in line: it is in the queue no more
    bool started = false;     // it waits, since op.started
    uint64_t number = 0;      // of those that were the first in line
  };
  Seat& seat(Rank rank) { return seats_[rank.value()]; }

  // Calls `then` after `delay`, if the rank's first operation is still the same and nothing broke.
  template <typename F>
  void After(Nanos delay, Rank rank, F then) {
    world()->At(world()->Now() + delay,
                [group = shared_from_this(), rank, number = seat(rank).number, then] {
                  if (!group->broken() && group->seat(rank).number == number) then();
                });
  }

  void TakeNext(Rank rank);
  void AskFence(Rank rank, Nanos interval);
  void Start(Rank rank);
  void Come(Rank rank);
  void Begin(const Party& party);
  void Finish(const Party& party);
  void EndFirst(Rank rank, const absl::Status& status);
  // Looks at what waits, at `deadline` or before.
  void SetTimer(Deadline deadline);
  void LookAtDeadlines();

  SimNetwork* const network_;
  const Nanos timeout_;
  const double scale_;
  Attendance attendance_;
  std::vector<Seat> seats_;  // by rank
  LocalPart part_;           // of one rank after the other
  absl::Status broken_;
  Deadline timer_ = kForever;  // the next one that is set
};

class SimRank final : public Communicator {
 public:
  SimRank(std::shared_ptr<SimGroup> group, Rank rank, uint32_t ranks, const CommOptions& options)
      : Communicator(rank, ranks, options, group->world()), group_(std::move(group)) {
    group_->Enter(rank, this);
  }
  ~SimRank() override { (void)Close(); }

  std::string description() const override {
    return fmt::format("{} simulated ranks in virtual time", ranks());
  }

  void OnBroken(const absl::Status& why) { Break(why); }
  void EndOp(CommOp* op, const absl::Status& status) {
    End(op, status.ok() ? status : this->status());  // what came first
  }

 private:
  void Start(CommOp* op) override { group_->Enqueue(rank(), op); }
  void Interrupt(const absl::Status& why) override {
    group_->Break(absl::UnavailableError(
        fmt::format("rank {} was aborted: {}", rank().value(), Message(why))));
  }
  void Leave() override { group_->Leave(rank()); }
  bool AwaitIdle(Nanos longest) override {
    SimWorld* const world = group_->world();
    const TimePoint until = world->Now() + longest;
    while (pending() > 0 && world->RunNext(until)) {
    }
    return pending() == 0;
  }

  const std::shared_ptr<SimGroup> group_;
};

void SimGroup::Enqueue(Rank rank, CommOp* op) {
  if (broken()) return seat(rank).member->EndOp(op, broken_);
  seat(rank).queue.Push(op);
  if (seat(rank).first == nullptr) TakeNext(rank);
}

// The first error stays; what is pending ends with what each rank was broken by.
void SimGroup::Break(const absl::Status& why) {
  if (why.ok() || broken()) return;
  broken_ = why;
  world()->Log(fmt::format("group breaks: {}", Message(why)));
  for (Seat& seat : seats_) {
    if (seat.member == nullptr) continue;
    seat.member->OnBroken(why);
    if (seat.first != nullptr) EndFirst(seat.member->rank(), why);
    while (!seat.queue.empty()) seat.member->EndOp(seat.queue.Pop(), why);
  }
}

void SimGroup::TakeNext(Rank rank) {
  Seat& seat = this->seat(rank);
  if (seat.queue.empty()) return;
  seat.first = seat.queue.Pop();
  AskFence(rank, Nanos(1000));
}

void SimGroup::AskFence(Rank rank, Nanos interval) {
  const Fence* const fence = seat(rank).first->after;
  if (fence == nullptr || fence->Complete()) return Start(rank);
  const Nanos next = std::min(interval + interval / 8, kFencePollMax);
  After(interval, rank, [=, this] { AskFence(rank, next); });
}

void SimGroup::Start(Rank rank) {
  Seat& seat = this->seat(rank);
  seat.first->started = world()->Now();
  seat.started = true;
  const SimFault fault = world()->faults()->Next(SimSeam::kRank);
  if (fault == SimFault::kError || fault == SimFault::kRefused) {
    return Break(absl::UnavailableError(
        fmt::format("rank {}: simulated error in {}", rank.value(), OpName(*seat.first))));
  }
  SetTimer(timeout_ > kForever - world()->Now() ? kForever : world()->Now() + timeout_);
  const Nanos late = world()->Delay(fault);
  if (late == Nanos(0)) return Come(rank);
  After(late, rank, [this, rank] { Come(rank); });
}

void SimGroup::SetTimer(Deadline deadline) {
  if (timer_ <= deadline) return;
  timer_ = deadline;
  world()->At(deadline, [group = shared_from_this(), deadline] {
    if (group->timer_ == deadline && !group->broken()) group->LookAtDeadlines();
  });
}

void SimGroup::LookAtDeadlines() {
  timer_ = kForever;
  TimePoint oldest = kForever;
  Rank rank;
  for (uint32_t r = 0; r < seats_.size(); ++r) {
    if (!seats_[r].started || seats_[r].first->started >= oldest) continue;
    oldest = seats_[r].first->started;
    rank = Rank(r);
  }
  if (oldest == kForever) return;
  if (world()->Now() - oldest < timeout_) return SetTimer(oldest + timeout_);
  const bool came = attendance_.op(rank) != nullptr;
  Break(absl::DeadlineExceededError(came ? attendance_.WaitsFor(rank) + ", which is too long"
                                         : fmt::format("rank {}: its own part of {} has not ended",
                                                       rank.value(), OpName(*seat(rank).first))));
}

void SimGroup::Come(Rank rank) {
  const absl::StatusOr<bool> begins = attendance_.Come(rank, seat(rank).first);
  if (!begins.ok()) return Break(begins.status());
  if (*begins) Begin(attendance_.PartyOf(rank));
}

void SimGroup::Begin(const Party& party) {
  party.ForEach([this](Rank rank) { seat(rank).started = false; });
  const Rank leader(party.first);
  const SimNetwork::Span span = network_->Occupy(party, attendance_.ops(), scale_);
  world()->Log(fmt::format("{} begins", OpName(*attendance_.op(leader))));
  const Nanos jitter(static_cast<int64_t>(world()->Uniform(0, 2'000)));
  const Nanos takes = span.end + jitter - world()->Now();
  if (!network_->options().moves_data) return After(takes, leader, [=, this] { Finish(party); });
  const Nanos moves(
      static_cast<int64_t>(world()->Uniform(0, static_cast<uint64_t>((takes - jitter).count()))));
  After(moves, leader, [=, this] {
    const int phases = LocalPart::phases(attendance_.op(leader)->kind);
    for (int phase = 0; phase < phases; ++phase)
      party.ForEach([&](Rank rank) { part_.Do(rank, attendance_.ops(), phase); });
    After(takes - moves, leader, [=, this] { Finish(party); });
  });
}

void SimGroup::Finish(const Party& party) {
  world()->Log(fmt::format("{} ends", OpName(*attendance_.op(Rank(party.first)))));
  party.ForEach([this](Rank rank) { EndFirst(rank, absl::OkStatus()); });
  party.ForEach([this](Rank rank) { TakeNext(rank); });
}

void SimGroup::EndFirst(Rank rank, const absl::Status& status) {
  Seat& seat = this->seat(rank);
  ++seat.number;
  seat.started = false;
  attendance_.Go(rank);
  seat.member->EndOp(std::exchange(seat.first, nullptr), status);
}

}  // namespace

SimTraffic TrafficOf(const CommOp& op, Rank self, uint32_t ranks, uint32_t ranks_per_host) {
  const uint32_t host = self.value() / ranks_per_host;
  const uint32_t first = host * ranks_per_host;
  const uint32_t last = std::min(first + ranks_per_host, ranks);
  const int64_t links = last - first;  // of the host
  // Of what is one per rank: that of this host's other ranks, of other hosts.
  const auto split = [&](const auto& segments, Bytes all) {
    Bytes here, own;
    for (uint32_t r = first; r < last; ++r) {
      const Bytes size(static_cast<int64_t>(SizeOfAll(segments[r])));
      here += size;
      if (r == self.value()) own = size;
    }
    return SimTraffic{here - own, all - here};
  };
  // What came over the network for the host is passed on in it.
  const auto shared = [&](SimTraffic all) {
    const Bytes own = all.network / links;
    return SimTraffic{all.local + all.network - own, own};
  };
  const Bytes send = op.sizes().send, receive = op.sizes().receive;
  const Bytes whole = std::max(send, receive);  // where there is one of both, or they are equal
  switch (op.kind) {
    case CommKind::kAllGather:
      return shared(split(op.receive, receive));
    case CommKind::kReduceScatter:
      return shared(split(op.send, send));
    case CommKind::kAllReduce: {
      const Bytes here = whole * links / ranks;
      const SimTraffic once = shared({here - here / links, whole - here});
      return {once.local * 2, once.network * 2};
    }
    case CommKind::kAllToAll: {
      const SimTraffic sent = split(op.send, send), came = split(op.receive, receive);
      return {std::max(sent.local, came.local), std::max(sent.network, came.network)};
    }
    case CommKind::kBroadcast: {
      const Bytes own = ranks > ranks_per_host ? whole / links : Bytes(0);
      return {links > 1 ? whole - own : Bytes(0), own};
    }
    case CommKind::kSend:
    case CommKind::kReceive: {
      const bool here = op.peer.value() >= first && op.peer.value() < last;
      return here ? SimTraffic{whole, Bytes(0)} : SimTraffic{Bytes(0), whole};
    }
    case CommKind::kBarrier:
      break;
  }
  return {};
}

std::vector<std::unique_ptr<Communicator>> SimNetwork::MakeGroup(const CommOptions& options,
                                                                 double scale) {
  const auto group = std::make_shared<SimGroup>(this, options.timeout, scale);
  std::vector<std::unique_ptr<Communicator>> members;
  for (uint32_t r = 0; r < ranks(); ++r)
    members.push_back(std::make_unique<SimRank>(group, Rank(r), ranks(), options));
  return members;
}

Nanos SimNetwork::LatencyOf(const CommOp& op) const {
  const uint32_t local = std::min(ranks(), options_.ranks_per_host);
  const uint32_t hosts = (ranks() + options_.ranks_per_host - 1) / options_.ranks_per_host;
  const bool ring = options_.steps == SimNetworkOptions::Steps::kRing &&
                    op.kind != CommKind::kAllToAll && !IsPointToPoint(op.kind);
  const auto steps = [ring](uint32_t n) { return ring ? int64_t{n} - 1 : Steps(n); };
  const Nanos messages =
      op.kind == CommKind::kAllToAll ? options_.message_gap * (ranks() - 1) : Nanos(0);
  return options_.local_latency * steps(local) + options_.network_latency * steps(hosts) + messages;
}

// Of an all-gather, what its rank sends to itself, unless it lies there already.
static Bytes OwnOf(const CommOp& op, Rank rank) {
  if (op.kind != CommKind::kAllGather || op.send.views.empty()) return {};
  const std::span<const MemoryView> to = op.receive[rank.value()];
  const bool in_place = !to.empty() && to.front().data() == op.send.views.front().data();
  return in_place ? Bytes(0) : op.sizes().own;
}

SimNetwork::Span SimNetwork::Occupy(const Party& party, std::span<CommOp* const> ops,
                                    double scale) {
  const CommOp& first = *ops[party.first];
  const Nanos latency = LatencyOf(first);
  const auto time_for = [&](Bytes bytes, double rate) { return TimeFor(bytes, rate / scale); };
  const bool beside = first.sizes().send <= options_.small;
  TimePoint begin = world_->Now();
  party.ForEach([&](Rank rank) {
    const Links& links = links_[rank.value()];
    if (!beside) begin = std::max({begin, links.local_free, links.network_free});
  });
  TimePoint end = begin + latency;
  party.ForEach([&](Rank rank) {
    SimTraffic traffic = TrafficOf(*ops[rank.value()], rank, ranks(), options_.ranks_per_host);
    if (options_.own_takes_time) traffic.local += OwnOf(*ops[rank.value()], rank);
    const Nanos local = time_for(traffic.local, options_.local_bytes_per_second);
    const Nanos network = time_for(traffic.network, options_.network_bytes_per_second);
    end = std::max(end, begin + std::max(local, network) + latency);
    if (beside) return;
    links_[rank.value()] = {begin + local, begin + network};
  });
  return {begin, end};
}

}  // namespace sluice
