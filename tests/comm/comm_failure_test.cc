// What every Communicator promises when something goes wrong: nothing waits for ever, every status
// names the rank, and nobody touches memory that was given back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/status.h"
#include "tests/comm/comm_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

constexpr Nanos kSoon = std::chrono::milliseconds(50);
constexpr Nanos kNever = std::chrono::minutes(1);  // on a machine however busy

class CommFailureTest : public CommFixture {
 protected:
  static std::string RankName(uint32_t rank) { return "rank " + std::to_string(rank); }

  // A collective of 48 bytes, over memory that goes when it has ended.
  TestOp* Call(uint32_t rank, CommKind kind, size_t bytes = 48, uint32_t peer = 0,
               FloatType type = FloatType::kF32, uint64_t tag = 0) {
    TestOp* const op = New(kind);
    op->op.tag = tag;
    op->op.type = type;
    op->op.peer = Rank(peer);
    const bool one_to_all = kind == CommKind::kBroadcast;
    const bool sends = !one_to_all || rank == peer;
    const bool receives = !one_to_all || rank != peer;
    if (kind != CommKind::kBarrier && sends) {
      for (uint32_t i = 0; i < (SendsOnePerRank(kind) ? ranks() : 1); ++i)
        op->send.emplace_back(op->memory.emplace_back(bytes));
    }
    if (kind != CommKind::kBarrier && receives) {
      for (uint32_t i = 0; i < (ReceivesOnePerRank(kind) ? ranks() : 1); ++i)
        op->receive.emplace_back(op->memory.emplace_back(bytes));
    }
    Enqueue(op, group()[rank].get());
    return op;
  }

  // Everything pending ends, and everything from now on; all say `code` and one of `texts`, or,
  // where there is no one place, name a rank.
  void ExpectBroken(absl::StatusCode code, const std::vector<std::string>& texts) {
    WaitForAll();
    const auto expect = [&](const absl::Status& status) {
      EXPECT_FALSE(status.ok());
      const std::string message(Message(status));
      if (!GetParam().one_place) {
        EXPECT_THAT(message, HasSubstr("rank "));
        return;
      }
      EXPECT_EQ(code, status.code()) << status;
      EXPECT_TRUE(std::ranges::any_of(texts, [&](const std::string& text) {
        return message.find(text) != std::string::npos;
      })) << message;
    };
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (GetParam().one_place) expect(group()[r]->status());
      EXPECT_EQ(0u, group()[r]->pending());
    }
    for (uint32_t r = 0; r < ranks(); ++r) {
      const TestOp* const late = Barrier(r);
      WaitFor({late});
      expect(late->op.status);
      expect(group()[r]->status());
      const absl::Status closed = group()[r]->Close();
      expect(closed);
      EXPECT_EQ(closed, group()[r]->Close());
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, CommFailureTest, testing::ValuesIn(kCommImplementations), NameOf);

TEST_P(CommFailureTest, OneRankCallsAnotherOperation) {
  for (const uint32_t ranks : {2u, 3u, 4u, 8u}) {
    for (uint32_t odd = 0; odd < ranks; ++odd) {
      Start(ranks, {.timeout = kNever});
      for (uint32_t r = 0; r < ranks; ++r) {
        Barrier(r);
        Call(r, r == odd ? CommKind::kAllGather : CommKind::kAllReduce);
        Call(r, CommKind::kAllToAll);
      }
      ExpectBroken(absl::StatusCode::kFailedPrecondition,
                   {RankName(odd) + " calls all-gather", RankName(odd) + " all-gather"});
      for (const TestOp& op : ops_)
        EXPECT_TRUE(op.op.kind == CommKind::kBarrier || !op.op.status.ok());
    }
  }
}

TEST_P(CommFailureTest, OneRankHasAnotherSizeOrTypeOrRoot) {
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    for (uint32_t odd = 0; odd < ranks; ++odd) {
      const auto all = [&](CommKind kind, const std::function<void(uint32_t)>& odd_call) {
        Start(ranks, {.timeout = kNever});
        for (uint32_t r = 0; r < ranks; ++r) {
          if (r == odd) {
            odd_call(r);
          } else {
            Call(r, kind);
          }
        }
        ExpectBroken(absl::StatusCode::kFailedPrecondition, {RankName(odd)});
      };
      for (const CommKind kind : {CommKind::kAllGather, CommKind::kReduceScatter,
                                  CommKind::kAllReduce, CommKind::kAllToAll, CommKind::kBroadcast})
        all(kind, [&](uint32_t r) { Call(r, kind, 52); });
      for (const CommKind kind : {CommKind::kReduceScatter, CommKind::kAllReduce})
        all(kind, [&](uint32_t r) { Call(r, kind, 48, 0, FloatType::kBf16); });
      all(CommKind::kBroadcast, [&](uint32_t r) { Call(r, CommKind::kBroadcast, 48, 1); });
    }
  }
}

TEST_P(CommFailureTest, PointToPointThatDoesNotFit) {
  const Data data(10);
  Data longer(11);
  Start(2, {.timeout = kNever});
  Send(0, 1, data);
  Receive(1, 0, longer);
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 0 sends 10 bytes to rank 1, which expects 11"});
  Start(2, {.timeout = kNever});
  Send(0, 1, data);
  Send(1, 0, data);
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 0 calls send of 10 bytes to rank 1 with tag 0, rank 1 send of 10 bytes to "
                "rank 0 with tag 0"});
  Start(3, {.timeout = kNever});
  Receive(2, 1, longer);
  Barrier(1);
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 1 calls barrier with tag 0, rank 2 receive of 11 bytes from rank 1"});
}

// Nobody's total is another than it should be, nor is that of all.
TEST_P(CommFailureTest, OneRankExpectsWhatIsSentToAnother) {
  const auto call = [&](uint32_t rank, const std::vector<size_t>& send,
                        const std::vector<size_t>& receive) {
    TestOp* const op = New(CommKind::kAllToAll);
    for (const size_t bytes : send) op->send.emplace_back(op->memory.emplace_back(bytes));
    for (const size_t bytes : receive) op->receive.emplace_back(op->memory.emplace_back(bytes));
    Enqueue(op, group()[rank].get());
  };
  Start(3, {.timeout = kNever});
  call(0, {0, 10, 20}, {0, 0, 0});
  call(1, {0, 5, 0}, {20, 5, 0});
  call(2, {0, 0, 5}, {10, 0, 5});
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 0 sends 10 bytes to rank 1, which expects 20"});
  Start(3, {.timeout = kNever});
  call(0, {0, 0, 10}, {0, 0, 0});
  call(1, {0, 0, 20}, {0, 0, 0});
  call(2, {0, 0, 0}, {20, 10, 0});
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 0 sends 10 bytes to rank 2, which expects 20"});
}

// Of the same kind and sizes: both ranks and both tags are named.
TEST_P(CommFailureTest, OneRankHasAnotherTag) {
  constexpr uint64_t kTag = 0x8000'0000'0000'0000, kOther = kTag + 1;
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    for (uint32_t odd = 0; odd < ranks; ++odd) {
      for (const CommKind kind :
           {CommKind::kAllGather, CommKind::kReduceScatter, CommKind::kAllReduce,
            CommKind::kBroadcast, CommKind::kAllToAll, CommKind::kBarrier}) {
        Start(ranks, {.timeout = kNever});
        for (uint32_t r = 0; r < ranks; ++r)
          Call(r, kind, 48, 0, FloatType::kF32, r == odd ? kOther : kTag);
        ExpectBroken(absl::StatusCode::kFailedPrecondition,
                     {RankName(odd) + " calls " + Name(kind), RankName(odd) + " " + Name(kind)});
        if (!GetParam().one_place) continue;
        for (const uint64_t tag : {kTag, kOther})
          EXPECT_THAT(std::string(Message(group()[0]->status())),
                      HasSubstr(" with tag " + std::to_string(tag)));
      }
    }
  }
  Data data(10);
  Start(2, {.timeout = kNever});
  Send(0, 1, data);
  TestOp* const receive = New(CommKind::kReceive);
  receive->op.tag = 7;
  receive->op.peer = Rank(0);
  receive->receive = {data};
  Enqueue(receive, group()[1].get());
  ExpectBroken(absl::StatusCode::kFailedPrecondition,
               {"rank 0 calls send of 10 bytes to rank 1 with tag 0, rank 1 receive of 10 bytes "
                "from rank 0 with tag 7"});
}

TEST_P(CommFailureTest, ARankThatNeverComesIsNamedAtTheDeadline) {
  for (const uint32_t ranks : {2u, 3u, 8u}) {
    for (uint32_t missing = 0; missing < ranks; ++missing) {
      Start(ranks, {.timeout = kSoon});
      if (missing % 2 == 0) {  // as it is after a while, not only from the beginning
        for (uint32_t r = 0; r < ranks; ++r) Barrier(r);
        LetThingsHappen();
      }
      for (uint32_t r = 0; r < ranks; ++r) {
        if (r == missing) continue;
        Call(r, CommKind::kAllGather);
        Barrier(r);
      }
      ExpectBroken(absl::StatusCode::kDeadlineExceeded,
                   {"waits in all-gather of 48 bytes for " + RankName(missing) + ",",
                    "waits in all-gather of 48 bytes for ranks",  // others may be that late too
                    "waits in barrier for rank"});
    }
  }
}

TEST_P(CommFailureTest, ACircleOfSendsEndsAtTheDeadline) {
  const Data data(10);
  Start(3, {.timeout = kSoon});
  for (uint32_t r = 0; r < 3; ++r) Send(r, (r + 1) % 3, data);
  ExpectBroken(absl::StatusCode::kDeadlineExceeded, {"waits in send of 10 bytes"});
}

// A fence that never completes.
class Never final : public FencePool {
 public:
  bool Complete(uint32_t) override { return false; }
  void Return(uint32_t) override {}
};

TEST_P(CommFailureTest, ARankWhoseFenceNeverCompletesIsNamedByTheOthers) {
  Start(3, {.timeout = kSoon});
  const Fence fence(std::make_shared<Never>(), 0);
  TestOp* const op = New(CommKind::kBarrier);
  op->op.after = &fence;
  Enqueue(op, group()[1].get());
  const TestOp* const other = Barrier(0);
  Barrier(2);
  WaitFor({other});
  if (!GetParam().one_place) group()[1]->Abort(absl::AbortedError("rank 1 is told"));
  ExpectBroken(absl::StatusCode::kDeadlineExceeded, {"waits in barrier for rank"});
}

TEST_P(CommFailureTest, AnOpenFenceHoldsNeitherAbortNorClose) {
  for (const bool closes : {false, true}) {
    Start(2, {.close_timeout = kSoon});
    const Fence fence(std::make_shared<Never>(), 0);
    TestOp* const op = New(CommKind::kBarrier);
    op->op.after = &fence;
    Enqueue(op, group()[0].get());
    const TestOp* const behind = Barrier(0);
    if (closes) {
      EXPECT_TRUE(absl::IsCancelled(group()[0]->Close()));
    } else {
      group()[0]->Abort(absl::CancelledError("enough"));
    }
    WaitForAll();
    for (const TestOp* ended : {static_cast<const TestOp*>(op), behind})
      EXPECT_TRUE(absl::IsCancelled(ended->op.status)) << ended->op.status;
  }
}

TEST_P(CommFailureTest, ARankThatGoesAwayIsNamed) {
  for (const uint32_t ranks : {2u, 3u, 8u}) {
    for (uint32_t lost = 0; lost < ranks; ++lost) {
      for (const bool before : {true, false}) {
        Start(ranks);
        absl::Status closed;
        if (before) closed = group()[lost]->Close();
        for (uint32_t r = 0; r < ranks; ++r) {
          if (r != lost) Barrier(r);
        }
        if (!before) closed = group()[lost]->Close();
        EXPECT_TRUE(closed.ok()) << closed;
        WaitForAll();
        for (uint32_t r = 0; r < ranks; ++r) {
          if (r == lost) continue;
          const absl::Status status = group()[r]->status();
          EXPECT_TRUE(absl::IsUnavailable(status)) << status;
          EXPECT_THAT(std::string(Message(status)), HasSubstr(RankName(lost) + " has left"));
        }
        const TestOp* const late = Barrier(lost);
        WaitFor({late});
        EXPECT_TRUE(absl::IsCancelled(late->op.status)) << late->op.status;
      }
    }
  }
}

TEST_P(CommFailureTest, AnAbortEndsEverythingOnAllRanks) {
  for (const uint32_t ranks : kRankCounts) {
    for (uint32_t who = 0; who < ranks; ++who) {
      Start(ranks);
      for (uint32_t r = 0; r < ranks; ++r) {
        if (ranks > 1 && r == (who + 1) % ranks) continue;  // the others wait for it
        for (int i = 0; i < 5; ++i) Barrier(r);
      }
      group()[who]->Abort(absl::ResourceExhaustedError("out of something"));
      group()[who]->Abort(absl::InternalError("a second one"));
      WaitForAll();
      for (const TestOp& op : ops_) EXPECT_EQ(ranks == 1 && op.op.status.ok(), op.op.status.ok());
      EXPECT_TRUE(absl::IsResourceExhausted(group()[who]->status())) << group()[who]->status();
      for (uint32_t r = 0; r < ranks; ++r) {
        if (r == who) continue;
        const TestOp* const late = Barrier(r);
        WaitFor({late});
        const absl::Status status = group()[r]->status();
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_THAT(std::string(Message(status)), HasSubstr(RankName(who) + " was aborted"));
        const char* const why = GetParam().one_place ? "out of something" : "";
        EXPECT_THAT(std::string(Message(status)), HasSubstr(why));
      }
    }
  }
}

TEST_P(CommFailureTest, CloseLetsWhatIsPendingEnd) {
  for (const uint32_t ranks : kRankCounts) {
    Start(ranks);
    for (uint32_t r = 0; r < ranks; ++r) {
      for (int i = 0; i < 20; ++i) Call(r, CommKind::kAllToAll);
    }
    for (const auto& communicator : group()) {
      const absl::Status closed = communicator->Close();
      EXPECT_TRUE(closed.ok()) << closed;
      EXPECT_TRUE(absl::IsCancelled(communicator->status()));
    }
    WaitForAll();
    for (const TestOp& op : ops_) EXPECT_TRUE(op.op.status.ok()) << op.op.status;
  }
}

TEST_P(CommFailureTest, CloseIsBounded) {
  for (const uint32_t ranks : {2u, 3u, 8u}) {
    Start(ranks, {.close_timeout = kSoon});
    for (uint32_t r = 1; r < ranks; ++r) {
      for (int i = 0; i < 3; ++i) Barrier(r);
    }
    const absl::Status closed = group()[1]->Close();
    EXPECT_TRUE(absl::IsCancelled(closed)) << closed;
    EXPECT_THAT(std::string(Message(closed)), HasSubstr("rank 1 was closed with 3 operations"));
    EXPECT_EQ(closed, group()[1]->Close());
    WaitForAll();
    for (uint32_t r = 2; r < ranks; ++r)
      EXPECT_THAT(std::string(Message(group()[r]->status())), HasSubstr("rank 1 was aborted"));
    const TestOp* const late = Barrier(0);
    WaitFor({late});
    EXPECT_TRUE(absl::IsUnavailable(late->op.status)) << late->op.status;
  }
}

TEST_P(CommFailureTest, ADestroyedOneLeavesNothingPending) {
  Start(3, {.close_timeout = kSoon});
  for (int i = 0; i < 3; ++i) Call(1, CommKind::kAllGather);
  group()[1].reset();
  WaitForAll();
  for (const TestOp& op : ops_) EXPECT_TRUE(absl::IsCancelled(op.op.status)) << op.op.status;
  const TestOp* const late = Barrier(2);
  WaitFor({late});
  EXPECT_THAT(std::string(Message(late->op.status)), HasSubstr("rank 1"));
}

// Breaks at every point of a run, with memory that is gone once its operation has ended: the
// address sanitizer sees who touches it.
TEST_P(CommFailureTest, WhateverBreaksNobodyTouchesMemoryGivenBack) {
  constexpr CommKind kKinds[] = {CommKind::kAllGather, CommKind::kReduceScatter,
                                 CommKind::kAllReduce, CommKind::kAllToAll, CommKind::kBroadcast};
  std::mt19937 random(4);
  for (int trial = 0; trial < 150; ++trial) {
    const uint32_t ranks = 2 + static_cast<uint32_t>(random() % 3);
    Start(ranks, {.close_timeout = kSoon});
    for (int i = 0; i < 8; ++i) {
      const CommKind kind = kKinds[random() % std::size(kKinds)];
      const size_t bytes = 4 * (random() % 5000);
      for (uint32_t r = 0; r < ranks; ++r) Call(r, kind, bytes);
      if (i == trial % 8) group()[random() % ranks]->Abort(absl::InternalError("aborted"));
    }
    WaitForAll();
    for (uint32_t r = 0; r < ranks; ++r) Barrier(r);
    WaitForAll();
    for (const auto& communicator : group()) EXPECT_FALSE(communicator->Close().ok());
  }
}

}  // namespace
}  // namespace sluice
