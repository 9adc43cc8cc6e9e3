// What every Communicator promises, as long as nothing goes wrong. (When something does:
// comm_failure_test.cc.)

#include "comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "core/status.h"
#include "tests/comm/comm_fixture.h"
#include "tests/comm/exchange.h"

namespace sluice {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
// A receive comes with its send.
constexpr CommKind kKinds[] = {CommKind::kAllGather, CommKind::kReduceScatter, CommKind::kAllReduce,
                               CommKind::kBroadcast, CommKind::kAllToAll,      CommKind::kSend,
                               CommKind::kBarrier};

class CommunicatorTest : public CommFixture {
 protected:
  // The exchange, enqueued by those who take part in it, in an order of its own.
  void Begin(Exchange* exchange, Group* group, std::mt19937* random) {
    std::vector<uint32_t> order(group->size());
    for (uint32_t r = 0; r < order.size(); ++r) order[r] = r;
    std::ranges::shuffle(order, *random);
    for (const uint32_t rank : order) {
      if (!exchange->takes_part(rank)) continue;
      TestOp* const op = New(CommKind::kBarrier);
      exchange->Describe(rank, op);
      Enqueue(op, (*group)[rank].get());
    }
  }
  void ExpectAllWell() {
    for (const TestOp& op : ops_) {
      ASSERT_TRUE(op.ended);
      EXPECT_TRUE(op.op.status.ok()) << op.op.status;
      EXPECT_LE(op.op.started, op.op.finished);
      EXPECT_FALSE(op.op.memory_lost);
    }
    for (const auto& communicator : group()) {
      EXPECT_TRUE(communicator->status().ok()) << communicator->status();
      EXPECT_EQ(0u, communicator->pending());
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, CommunicatorTest, testing::ValuesIn(kCommImplementations), NameOf);

TEST_P(CommunicatorTest, EveryOperationMovesWhatItSays) {
  std::mt19937 random(1);
  for (const uint32_t ranks : kRankCounts) {
    for (const CommKind kind : kKinds) {
      if (kind == CommKind::kSend && ranks == 1) continue;
      for (const FloatType type : kTypes) {
        Start(ranks);
        for (int trial = 0; trial < 6; ++trial) {
          Exchange exchange(kind, type, ranks, trial % 2 == 1, &random);
          Begin(&exchange, &group(), &random);
          WaitForAll();
          for (uint32_t r = 0; r < ranks; ++r) exchange.Check(r);
        }
        ExpectAllWell();
      }
    }
  }
}

TEST_P(CommunicatorTest, ManyInFlightRunInTheOrderOfEachRank) {
  std::mt19937 random(2);
  for (const uint32_t ranks : kRankCounts) {
    Start(ranks);
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < 60; ++i) {
      const CommKind kind = kKinds[random() % std::size(kKinds)];
      if (kind == CommKind::kSend && ranks == 1) continue;
      exchanges.push_back(std::make_unique<Exchange>(kind, kTypes[random() % std::size(kTypes)],
                                                     ranks, random() % 2 == 0, &random));
    }
    // All of one rank's, then all of the next one's: nobody meets before the last.
    std::vector<std::vector<TestOp*>> by_rank(ranks);
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const auto& exchange : exchanges) {
        if (!exchange->takes_part(r)) continue;
        by_rank[r].push_back(New(CommKind::kBarrier));
        exchange->Describe(r, by_rank[r].back());
        Enqueue(by_rank[r].back(), group()[r].get());
      }
    }
    WaitForAll();
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const auto& exchange : exchanges) exchange->Check(r);
      for (size_t i = 1; i < by_rank[r].size(); ++i)
        EXPECT_LT(by_rank[r][i - 1]->order, by_rank[r][i]->order);
    }
    ExpectAllWell();
  }
}

TEST_P(CommunicatorTest, GroupsRunSideBySide) {
  std::mt19937 random(3);
  for (const uint32_t ranks : kRankCounts) {
    Start(ranks);
    Group* const groups[] = {&group(), &AddGroup(), &AddGroup()};
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < 60; ++i) {
      const CommKind kind = kKinds[random() % std::size(kKinds)];
      if (kind == CommKind::kSend && ranks == 1) continue;
      exchanges.push_back(
          std::make_unique<Exchange>(kind, FloatType::kBf16, ranks, false, &random));
      Begin(exchanges.back().get(), groups[random() % 3], &random);
    }
    WaitForAll();
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const auto& exchange : exchanges) exchange->Check(r);
    }
    ExpectAllWell();
  }
}

TEST_P(CommunicatorTest, AGroupThatWaitsHoldsNoOtherUp) {
  Start(3);
  const TestOp* const waits = Barrier(0);
  LetThingsHappen();
  EXPECT_FALSE(waits->ended);
  EXPECT_EQ(1u, group()[0]->pending());
  Barrier(2);
  LetThingsHappen();
  EXPECT_FALSE(waits->ended);
  Barrier(1);
  WaitForAll();
  ExpectAllWell();
}

TEST_P(CommunicatorTest, ABarrierEndsWhenTheLastHasCome) {
  for (const uint32_t ranks : kRankCounts) {
    for (uint32_t last = 0; last < ranks; ++last) {
      Start(ranks);
      for (uint32_t r = 0; r < ranks; ++r) {
        if (r != last) Barrier(r);
      }
      LetThingsHappen();
      for (uint32_t r = 0; r < ranks; ++r) EXPECT_EQ(r == last ? 0u : 1u, group()[r]->pending());
      Barrier(last);
      WaitForAll();
      ExpectAllWell();
    }
  }
}

// Whoever waits for a rank that is busy with a third one just waits.
TEST_P(CommunicatorTest, PointToPointWaitsItsTurn) {
  Start(3);
  const Data first(100, std::byte{1}), second(200, std::byte{2});
  Data to_first(100), to_second(200);
  Send(0, 1, first);
  Receive(1, 2, to_second);
  Receive(1, 0, to_first);
  LetThingsHappen();
  EXPECT_EQ(1u, group()[0]->pending());
  Send(2, 1, second);
  WaitForAll();
  EXPECT_TRUE(first == to_first);
  EXPECT_TRUE(second == to_second);
  ExpectAllWell();
}

TEST_P(CommunicatorTest, PairsMeetWhileTheOthersDoOtherThings) {
  std::mt19937 random(5);
  for (const uint32_t ranks : {2u, 4u, 8u}) {
    Start(ranks);
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < 100; ++i) {
      exchanges.push_back(
          std::make_unique<Exchange>(CommKind::kSend, FloatType::kF32, ranks, false, &random));
      Begin(exchanges.back().get(), &group(), &random);
    }
    WaitForAll();
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const auto& exchange : exchanges) exchange->Check(r);
    }
    ExpectAllWell();
  }
}

// A fence that the test completes.
class Gate final : public FencePool {
 public:
  bool Complete(uint32_t) override { return open; }
  void Return(uint32_t) override {}
  std::atomic<bool> open{false};
};

TEST_P(CommunicatorTest, AnOperationStartsWhenItsFenceIsComplete) {
  Start(2);
  const auto gate = std::make_shared<Gate>();
  const Fence fence(gate, 0);
  Data data(1000), copy(1000);
  TestOp* const send = New(CommKind::kSend);
  send->op.peer = Rank(1);
  send->op.after = &fence;
  send->send = {data};
  Enqueue(send, group()[0].get());
  const TestOp* const receive = Receive(1, 0, copy);
  LetThingsHappen();
  EXPECT_FALSE(send->ended || receive->ended);
  data.assign(data.size(), std::byte{7});  // as the work that the fence stands for would
  gate->open = true;
  WaitForAll();
  EXPECT_TRUE(data == copy);
  ExpectAllWell();
}

// However long its own fence takes: the others would name it.
TEST_P(CommunicatorTest, TheDeadlineDoesNotRunWhileTheFenceIsOpen) {
  Start(2, {.timeout = std::chrono::minutes(1)});
  const auto gate = std::make_shared<Gate>();
  const Fence fence(gate, 0);
  TestOp* const waits = New(CommKind::kBarrier);
  waits->op.after = &fence;
  Enqueue(waits, group()[0].get());
  LetThingsHappen();
  Pass(std::chrono::minutes(2));
  LetThingsHappen();
  EXPECT_FALSE(waits->ended);
  gate->open = true;
  Barrier(1);
  WaitForAll();
  ExpectAllWell();
}

TEST_P(CommunicatorTest, AnOperationMayBeEnqueuedAgainOnceItWasHandled) {
  Start(2);
  Data data(64), copy(64);
  TestOp* const send = Send(0, 1, data);
  TestOp* const receive = Receive(1, 0, copy);
  for (int i = 1; i < 50; ++i) {
    WaitForAll();
    EXPECT_TRUE(data == copy);
    data.assign(data.size(), static_cast<std::byte>(i));
    send->ended = receive->ended = false;
    Enqueue(receive, group()[1].get());
    Enqueue(send, group()[0].get());
  }
  WaitForAll();
}

TEST_P(CommunicatorTest, CountsWhatItMoves) {
  constexpr uint32_t kRanks = 4;
  Start(kRanks);
  const Data data(120);
  std::deque<Data> received;
  const auto call = [&](uint32_t rank, CommKind kind, size_t sends, size_t receives) {
    TestOp* const op = New(kind);
    op->send.assign(sends, data);
    for (size_t i = 0; i < receives; ++i) op->receive.emplace_back(received.emplace_back(120));
    Enqueue(op, group()[rank].get());
  };
  for (uint32_t r = 0; r < kRanks; ++r) {
    call(r, CommKind::kAllGather, 1, kRanks);
    call(r, CommKind::kReduceScatter, kRanks, 1);
    call(r, CommKind::kAllReduce, 1, 1);
    call(r, CommKind::kAllReduce, 1, 1);
    call(r, CommKind::kAllToAll, kRanks, kRanks);
    call(r, CommKind::kBroadcast, r == 0 ? 1 : 0, r == 0 ? 0 : 1);
    call(r, CommKind::kBarrier, 0, 0);
  }
  Send(1, 2, data);
  Receive(2, 1, received.emplace_back(120));
  WaitForAll();
  ExpectAllWell();
  for (uint32_t r = 0; r < kRanks; ++r) {
    const CommCounts counts = group()[r]->counts();
    const auto expect = [&](CommKind kind, uint64_t operations, int64_t sent, int64_t came) {
      const CommCount& count = counts[static_cast<size_t>(kind)];
      EXPECT_EQ(operations, count.operations) << Name(kind);
      EXPECT_EQ(Bytes(sent), count.sent) << Name(kind);
      EXPECT_EQ(Bytes(came), count.received) << Name(kind);
    };
    expect(CommKind::kAllGather, 1, 360, 360);
    expect(CommKind::kReduceScatter, 1, 360, 360);
    expect(CommKind::kAllReduce, 2, 360, 360);  // 2 * 3 / 4 of it, each
    expect(CommKind::kAllToAll, 1, 360, 360);
    expect(CommKind::kBroadcast, 1, r == 0 ? 120 : 0, r == 0 ? 0 : 120);
    expect(CommKind::kBarrier, 1, 0, 0);
    expect(CommKind::kSend, r == 1 ? 1 : 0, r == 1 ? 120 : 0, 0);
    expect(CommKind::kReceive, r == 2 ? 1 : 0, 0, r == 2 ? 120 : 0);
  }
}

// Which is of kinds and tags and their order, and of what all ranks call.
TEST_P(CommunicatorTest, TheSameHistoryIsTheSameCollectives) {
  using Calls = std::vector<std::pair<CommKind, uint64_t>>;
  constexpr CommKind kBarrier = CommKind::kBarrier, kGather = CommKind::kAllGather;
  const std::vector<Calls> different = {
      {},
      {{kBarrier, 0}},
      {{kBarrier, 1}},
      {{kBarrier, uint64_t{1} << 63}},
      {{kGather, 0}},
      {{kBarrier, 0}, {kBarrier, 0}},
      {{kBarrier, 1}, {kBarrier, 2}},
      {{kBarrier, 2}, {kBarrier, 1}},
      {{kBarrier, 0}, {kGather, 0}},
      {{kGather, 0}, {kBarrier, 0}},
  };
  const Data data;
  Data received;
  std::vector<uint64_t> histories;
  for (const Calls& calls : different) {
    Start(3);
    for (const auto& [kind, tag] : calls) {
      for (uint32_t r = 0; r < 3; ++r) {
        TestOp* const op = New(kind);
        op->op.tag = tag;
        if (kind == kGather) op->receive_ends = {0, 0, 0};
        Enqueue(op, group()[r].get());
      }
      Send(0, 1, data);
      Receive(1, 0, received);
    }
    WaitForAll();
    ExpectAllWell();
    for (uint32_t r = 0; r < 3; ++r) EXPECT_EQ(group()[0]->history(), group()[r]->history());
    for (const uint64_t other : histories) EXPECT_NE(other, group()[0]->history());
    histories.push_back(group()[0]->history());
  }
}

TEST_P(CommunicatorTest, OneRankMovesNothing) {
  Start(1);
  Data data(64, std::byte{3}), copy(64);
  for (const CommKind kind : {CommKind::kAllGather, CommKind::kReduceScatter, CommKind::kAllReduce,
                              CommKind::kAllToAll}) {
    TestOp* const op = New(kind);
    op->send = {data};
    op->receive = {copy};
    Enqueue(op, group()[0].get());
    WaitForAll();
    EXPECT_TRUE(data == copy) << Name(kind);
    EXPECT_EQ(Bytes(0), group()[0]->counts()[static_cast<size_t>(kind)].sent);
    copy.assign(copy.size(), std::byte{0});
  }
}

TEST_P(CommunicatorTest, KnowsItsPlaceAndSaysWhatItIs) {
  Start(3);
  for (uint32_t r = 0; r < 3; ++r) {
    EXPECT_EQ(Rank(r), group()[r]->rank());
    EXPECT_EQ(3u, group()[r]->ranks());
    EXPECT_FALSE(group()[r]->description().empty());
  }
}

}  // namespace
}  // namespace sluice
