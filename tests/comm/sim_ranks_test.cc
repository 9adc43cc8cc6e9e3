// Simulated ranks: how long operations take, what the seed decides, and what goes wrong.

#include "comm/sim_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "core/sim_world.h"
#include "core/status.h"
#include "tests/comm/comm_fixture.h"
#include "tests/core/seeds.h"

namespace sluice {
namespace {

using testing::HasSubstr;

// Some ranks of a network, and what they call.
class SimRanks {
 public:
  SimRanks(const SimNetworkOptions& options, uint32_t ranks, uint64_t seed = 1)
      : world_(seed), network_(options, ranks, &world_), waiting_(&world_) {
    AddGroup({});
  }

  Group& AddGroup(const CommOptions& options) {
    return groups_.emplace_back(network_.MakeGroup(options));
  }
  Group& group(size_t i = 0) { return groups_[i]; }
  SimWorld& world() { return world_; }

  TestOp* Call(Communicator* communicator, CommKind kind, size_t bytes) {
    const uint32_t ranks = network_.ranks();
    TestOp* const op = &ops_.emplace_back();
    const bool all_send = kind == CommKind::kReduceScatter || kind == CommKind::kAllToAll;
    const bool all_receive = kind == CommKind::kAllGather || kind == CommKind::kAllToAll;
    const auto view = [&] { return MemoryView(op->memory.emplace_back(bytes)); };
    for (uint32_t i = 0; kind != CommKind::kBarrier && i < (all_send ? ranks : 1); ++i)
      op->send.emplace_back(view());
    for (uint32_t i = 0; kind != CommKind::kBarrier && i < (all_receive ? ranks : 1); ++i)
      op->receive.emplace_back(view());
    op->op.kind = kind;
    op->SetSegments();
    op->op.inbox = waiting_.inbox();
    op->op.event = op;
    op->counter = &counter_;
    communicator->Enqueue(&op->op);
    return op;
  }
  void CallAll(CommKind kind, size_t bytes, size_t group = 0) {
    for (const auto& communicator : groups_[group]) Call(communicator.get(), kind, bytes);
  }

  // Until everything has ended; how long that took in all.
  double Finish() {
    waiting_.HandleUntil(
        [this] { return std::ranges::all_of(ops_, [](const TestOp& op) { return op.ended; }); });
    return Seconds(world_.Now());
  }
  const std::deque<TestOp>& ops() const { return ops_; }

 private:
  SimWorld world_;
  SimNetwork network_;
  WaitingInbox waiting_;
  int counter_ = 0;
  std::deque<TestOp> ops_;
  std::deque<Group> groups_;
};

constexpr SimNetworkOptions kOneHost{.ranks_per_host = 4, .local_bytes_per_second = 1e9};
// Two hosts of two ranks.
constexpr SimNetworkOptions kTwoHosts{
    .ranks_per_host = 2, .local_bytes_per_second = 1e9, .network_bytes_per_second = 1e8};

struct Case {
  CommKind kind;
  double one_host;  // seconds, of views of 4 MB, by hand
  double two_hosts;
};
constexpr size_t kView = 4'000'000;

TEST(SimRanksTest, OperationsTakeWhatTheirBusiestLinkNeeds) {
  const Case cases[] = {
      // A rank receives three shares: over the network its half of the other host's two.
      {CommKind::kAllGather, 12e6 / 1e9, 4e6 / 1e8},
      {CommKind::kReduceScatter, 12e6 / 1e9, 4e6 / 1e8},
      // Three quarters of the whole twice; a quarter of it crosses the network twice.
      {CommKind::kAllReduce, 6e6 / 1e9, 2e6 / 1e8},
      // Two of the four views go to the other host, and each rank sends its own.
      {CommKind::kAllToAll, 12e6 / 1e9, 8e6 / 1e8},
      {CommKind::kBarrier, 0, 0},
  };
  for (const Case& c : cases) {
    SimRanks one(kOneHost, 4), two(kTwoHosts, 4);
    one.CallAll(c.kind, kView);
    two.CallAll(c.kind, kView);
    EXPECT_NEAR(c.one_host, one.Finish(), 50e-6) << Name(c.kind);
    EXPECT_NEAR(c.two_hosts, two.Finish(), 50e-6) << Name(c.kind);
  }
}

// Steps of a tree: three among the ranks of a host, six among the hosts.
TEST(SimRanksTest, ManyHosts) {
  SimRanks ranks({.ranks_per_host = 8,
                  .local_latency = std::chrono::microseconds(10),
                  .network_latency = std::chrono::microseconds(100)},
                 64 * 8);
  ranks.CallAll(CommKind::kAllGather, 16);
  EXPECT_NEAR(630e-6, ranks.Finish(), 5e-6);
  for (const TestOp& op : ranks.ops()) EXPECT_TRUE(op.op.status.ok()) << op.op.status;
}

// A ring has a step for each but one; an all-to-all has a message for each, and no ring.
TEST(SimRanksTest, RingsAndMessages) {
  const SimNetworkOptions options{.ranks_per_host = 8,
                                  .local_latency = std::chrono::microseconds(10),
                                  .network_latency = std::chrono::microseconds(100),
                                  .steps = SimNetworkOptions::Steps::kRing,
                                  .message_gap = std::chrono::microseconds(1)};
  SimRanks ring(options, 4 * 8), messages(options, 4 * 8);
  ring.CallAll(CommKind::kAllGather, 16);
  EXPECT_NEAR((7 * 10 + 3 * 100) * 1e-6, ring.Finish(), 5e-6);
  messages.CallAll(CommKind::kAllToAll, 16);
  EXPECT_NEAR((3 * 10 + 2 * 100 + 31) * 1e-6, messages.Finish(), 5e-6);
}

// A small operation of another group need not wait until a large one is over.
TEST(SimRanksTest, SmallOnesGoBesideLargeOnes) {
  for (const Bytes small : {Bytes(0), Bytes(64)}) {
    SimNetworkOptions options = kOneHost;
    options.small = small;
    SimRanks ranks(options, 4);
    ranks.AddGroup({});
    ranks.CallAll(CommKind::kAllGather, kView);
    ranks.CallAll(CommKind::kAllGather, 64, 1);
    EXPECT_NEAR(12e-3, ranks.Finish(), 50e-6);
    const double ended = Seconds(ranks.ops().back().op.finished);
    EXPECT_NEAR(small > Bytes(0) ? 10e-6 : 12e-3, ended, 50e-6);
  }
}

// As a schedule of many hosts has them: an operation is one thing that happens, whatever the number
// of ranks. Nobody has that much memory: the views lie nowhere.
TEST(SimRanksTest, ManyCollectivesOfManyRanks) {
  constexpr uint32_t kRanks = 512;
  constexpr int kCalls = 200;
  SimWorld world(1);
  SimNetwork network({.moves_data = false}, kRanks, &world);
  const Group group = network.MakeGroup({});
  WaitingInbox waiting(&world);
  const ConstMemoryView nowhere(reinterpret_cast<const std::byte*>(64), size_t{1} << 30);
  const MemoryView no_place(reinterpret_cast<std::byte*>(64), size_t{1} << 30);
  int counter = 0;
  std::deque<TestOp> ops(kRanks);
  int64_t bytes = 0;
  for (int call = 0; call < kCalls; ++call) {
    const auto kind = static_cast<CommKind>(call % kCommKindCount);
    if (IsPointToPoint(kind)) continue;
    for (uint32_t r = 0; r < kRanks; ++r) {
      TestOp& op = ops[r];
      const bool one = kind != CommKind::kBarrier;
      const bool root = r == 0 || kind != CommKind::kBroadcast;
      const bool other = r != 0 || kind != CommKind::kBroadcast;
      op.op.kind = kind;
      op.op.tag = static_cast<uint64_t>(call);
      op.send.assign(SendsOnePerRank(kind) ? kRanks : one && root ? 1 : 0, nowhere);
      op.receive.assign(ReceivesOnePerRank(kind) ? kRanks : one && other ? 1 : 0, no_place);
      op.send_ends.clear();
      op.receive_ends.clear();
      op.SetSegments();
      op.op.inbox = waiting.inbox();
      op.op.event = &op;
      op.counter = &counter;
      op.ended = false;
      group[r]->Enqueue(&op.op);
    }
    waiting.HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp& op) { return op.ended; }); });
    for (const TestOp& op : ops) ASSERT_TRUE(op.op.status.ok()) << op.op.status;
    if (kind == CommKind::kAllGather) bytes += int64_t{kRanks - 1} << 30;
  }
  EXPECT_EQ(Bytes(bytes), group[0]->counts()[static_cast<size_t>(CommKind::kAllGather)].received);
}

TEST(SimRanksTest, GroupsShareTheLinks) {
  SimRanks ranks(kOneHost, 4);
  ranks.AddGroup({});
  ranks.CallAll(CommKind::kAllGather, kView, 0);
  ranks.CallAll(CommKind::kReduceScatter, kView, 1);
  EXPECT_NEAR(24e6 / 1e9, ranks.Finish(), 100e-6);
}

TEST(SimRanksTest, AnOperationWaitsForTheLastRank) {
  SimRanks ranks(kOneHost, 2);
  const TestOp* const first = ranks.Call(ranks.group()[0].get(), CommKind::kAllGather, kView);
  ranks.world().At(TimePoint(1'000'000'000),
                   [&] { ranks.Call(ranks.group()[1].get(), CommKind::kAllGather, kView); });
  EXPECT_NEAR(1 + 4e6 / 1e9, (ranks.Finish(), Seconds(first->op.finished)), 50e-6);
  EXPECT_EQ(TimePoint(0), first->op.started);
}

std::string LogOf(uint64_t seed) {
  SimRanks ranks(kTwoHosts, 4, seed);
  ranks.world().faults()->Draw(SimSeam::kRank, SimFault::kLate, 5);
  for (int i = 0; i < 10; ++i) ranks.CallAll(static_cast<CommKind>(i % 3), 1000);
  ranks.Finish();
  return ranks.world().log();
}

TEST(SimRanksTest, TheSameSeedIsTheSameRun) {
  for (const uint64_t seed : Seeds(10)) {
    EXPECT_EQ(LogOf(seed), LogOf(seed));
    EXPECT_NE(LogOf(seed), LogOf(seed + 1000));
  }
}

// The n-th call fails, for every n until nothing does: each operation ends, well before it and with
// the rank's name after it.
TEST(SimRanksTest, AnErrorOfAnyCallIsNamed) {
  bool failed = true;
  for (uint64_t nth = 1; failed; ++nth) {
    SimRanks ranks(kTwoHosts, 4);
    ranks.world().faults()->Script(SimSeam::kRank, SimFault::kError, nth, SimFaults::Repeat::kOnce);
    for (int i = 0; i < 5; ++i) ranks.CallAll(CommKind::kAllReduce, 4000);
    ranks.Finish();
    failed = ranks.world().faults()->happened() > 0;
    for (const auto& communicator : ranks.group()) {
      EXPECT_EQ(failed, !communicator->status().ok());
      if (failed) {
        EXPECT_THAT(std::string(Message(communicator->status())), HasSubstr("simulated error"));
      }
    }
    ASSERT_LE(nth, 21u);
  }
}

TEST(SimRanksTest, ASilentRankIsNamedAfterTheTimeout) {
  for (const uint64_t seed : Seeds(20)) {
    SimRanks ranks(kTwoHosts, 4, seed);
    ranks.AddGroup({.timeout = std::chrono::seconds(30)});
    ranks.world().faults()->Script(SimSeam::kRank, SimFault::kSilent, 3, SimFaults::Repeat::kOnce);
    ranks.CallAll(CommKind::kAllGather, 1000, 1);
    EXPECT_NEAR(30, ranks.Finish(), 1e-3);
    for (const TestOp& op : ranks.ops()) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(op.op.status)) << op.op.status;
      EXPECT_THAT(std::string(Message(op.op.status)), HasSubstr("rank 2"));
    }
  }
}

TEST(SimRanksTest, EachOperationHasATimeoutOfItsOwn) {
  SimRanks ranks(kTwoHosts, 4);
  const Group& group = ranks.AddGroup({.timeout = std::chrono::seconds(30)});
  ranks.CallAll(CommKind::kBarrier, 0, 1);
  ranks.world().At(std::chrono::seconds(10), [&] { ranks.CallAll(CommKind::kBarrier, 0, 1); });
  ranks.world().At(std::chrono::seconds(20),
                   [&] { ranks.Call(group[0].get(), CommKind::kBarrier, 0); });
  ranks.world().At(std::chrono::seconds(40),
                   [&] { ranks.Call(group[1].get(), CommKind::kBarrier, 0); });
  EXPECT_NEAR(0, ranks.Finish(), 1e-3);
  while (ranks.ops().size() < 10) ranks.world().RunNext(kForever);
  EXPECT_NEAR(50, ranks.Finish(), 1e-3);  // 30 s of the one that has waited longest
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(i < 8, ranks.ops()[i].op.status.ok());
}

// Late ones and errors at random, and groups that are closed whatever state they are in.
TEST(SimRanksTest, WhateverHappensEverythingEnds) {
  for (const uint64_t seed : Seeds(100)) {
    SimRanks ranks(kTwoHosts, 5, seed);
    ranks.AddGroup({.timeout = std::chrono::seconds(5), .close_timeout = std::chrono::seconds(1)});
    SimFaults* const faults = ranks.world().faults();
    faults->Draw(SimSeam::kRank, SimFault::kLate, 20);
    faults->Draw(SimSeam::kRank, SimFault::kSilent, 400);
    faults->Draw(SimSeam::kRank, SimFault::kError, 200);
    for (int i = 0; i < 30; ++i)
      ranks.CallAll(static_cast<CommKind>(i % 3), 4 * (seed % 1000), static_cast<size_t>(i % 2));
    if (seed % 2 == 0) ranks.group(1)[seed % 5].reset();
    ranks.Finish();
    for (size_t group : {0u, 1u}) {
      for (const auto& communicator : ranks.group(group)) {
        if (communicator != nullptr) {
          EXPECT_EQ(0u, communicator->pending());
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice
