// One host that stands for all: what its ranks receive, and when, as if all ranks were there.

#include "comm/sim_mirror.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "core/status.h"
#include "tests/comm/comm_fixture.h"

namespace sluice {
namespace {

constexpr uint32_t kPerHost = 2;
constexpr SimNetworkOptions kNetwork{.ranks_per_host = kPerHost,
                                     .local_bytes_per_second = 1e9,
                                     .network_bytes_per_second = 1e8,
                                     .local_latency = std::chrono::microseconds(3),
                                     .network_latency = std::chrono::microseconds(40),
                                     .message_gap = std::chrono::microseconds(2)};

// All ranks of a group call `kind`, each byte being the number of its sender's place on its host;
// returns what the first host's have received.
struct Outcome {
  std::vector<Data> received;
  double seconds = 0;
};
Outcome Call(bool mirrored, CommKind kind, uint32_t ranks, size_t bytes, double scale) {
  SimWorld world(1);
  SimNetwork network(kNetwork, ranks, &world);
  WaitingInbox waiting(&world);
  std::deque<TestOp> ops;
  std::deque<Data> memory;
  int counter = 0;
  Outcome outcome;
  {
    const Group group =
        mirrored ? MakeMirroredGroup(&network, {}, scale) : network.MakeGroup({}, scale);
    EXPECT_EQ(mirrored ? kPerHost : ranks, group.size());
    for (const auto& communicator : group) {
      TestOp* const op = &ops.emplace_back();
      const auto view = [&](uint32_t number) {
        Data& data = memory.emplace_back(bytes);
        std::ranges::fill(data, static_cast<std::byte>(number));
        return MemoryView(data);
      };
      const bool sends_each = kind == CommKind::kAllToAll;
      const uint32_t place = communicator->rank().value() % kPerHost;
      for (uint32_t i = 0; i < (sends_each ? ranks : 1); ++i) op->send.emplace_back(view(place));
      for (uint32_t i = 0; i < ranks; ++i) op->receive.emplace_back(view(99));
      op->op.kind = kind;
      op->SetSegments();
      op->op.inbox = waiting.inbox();
      op->op.event = op;
      op->counter = &counter;
      communicator->Enqueue(&op->op);
    }
    waiting.HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp& op) { return op.ended; }); });
    outcome.seconds = Seconds(world.Now());
    for (uint32_t r = 0; r < kPerHost; ++r) {
      EXPECT_TRUE(ops[r].op.status.ok()) << ops[r].op.status;
      EXPECT_EQ(ranks, group[r]->ranks());
      for (const MemoryView& view : ops[r].receive)
        outcome.received.emplace_back(view.begin(), view.end());
    }
  }
  return outcome;
}

TEST(SimMirrorTest, IsAsIfAllWereThere) {
  for (const CommKind kind : {CommKind::kAllGather, CommKind::kAllToAll}) {
    for (const uint32_t ranks : {2u, 4u, 12u}) {
      for (const double scale : {1.0, 30.0}) {
        const Outcome all = Call(false, kind, ranks, 100'000, scale);
        const Outcome one = Call(true, kind, ranks, 100'000, scale);
        EXPECT_EQ(all.received, one.received) << Name(kind) << " of " << ranks;
        EXPECT_NEAR(all.seconds, one.seconds, 3e-6) << Name(kind) << " of " << ranks;
      }
    }
  }
}

TEST(SimMirrorTest, ScaledBytesTakeAsMuchLonger) {
  const double once = Call(true, CommKind::kAllToAll, 12, 1'000'000, 1).seconds;
  const double ten = Call(true, CommKind::kAllToAll, 12, 1'000'000, 10).seconds;
  EXPECT_NEAR(10, ten / once, 0.1);
}

// Who leaves while others wait breaks the group, and so does who comes to something else.
TEST(SimMirrorTest, WhatGoesWrongEnds) {
  for (const bool leaves : {true, false}) {
    SimWorld world(1);
    SimNetwork network(kNetwork, 8, &world);
    WaitingInbox waiting(&world);
    Group group = MakeMirroredGroup(&network, {});
    std::deque<TestOp> ops(2);
    int counter = 0;
    for (size_t r = 0; r < (leaves ? 1 : 2); ++r) {
      ops[r].op.kind = CommKind::kBarrier;
      ops[r].op.tag = r;
      ops[r].op.inbox = waiting.inbox();
      ops[r].op.event = &ops[r];
      ops[r].counter = &counter;
      group[r]->Enqueue(&ops[r].op);
    }
    if (leaves) group[1].reset();
    waiting.HandleUntil([&] { return ops[0].ended; });
    EXPECT_EQ(leaves ? absl::StatusCode::kUnavailable : absl::StatusCode::kFailedPrecondition,
              ops[0].op.status.code());
  }
}

}  // namespace
}  // namespace sluice
