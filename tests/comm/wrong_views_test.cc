// Operations whose views are not what their kind wants: bugs, which end the process.

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "tests/comm/comm_fixture.h"

namespace sluice {
namespace {

using CommunicatorDeathTest = CommFixture;
INSTANTIATE_TEST_SUITE_P(All, CommunicatorDeathTest, testing::ValuesIn(kCommImplementations),
                         NameOf);

TEST_P(CommunicatorDeathTest, WrongViewsAreABugOfTheCaller) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  Start(2);
  Data data(8), other(12);
  const auto call = [&](CommKind kind, std::vector<ConstMemoryView> send,
                        std::vector<MemoryView> receive, uint32_t peer) {
    TestOp* const op = New(kind);
    op->send = std::move(send);
    op->receive = std::move(receive);
    op->op.peer = Rank(peer);
    op->op.type = FloatType::kF32;
    Enqueue(op, group()[0].get());
  };
  EXPECT_DEATH(call(CommKind::kBarrier, {data}, {}, 0), "barrier: to send it has 1 views");
  EXPECT_DEATH(call(CommKind::kAllGather, {data}, {data}, 0),
               "all-gather: to receive it has ends for 1 ranks, not 2");
  EXPECT_DEATH(call(CommKind::kAllGather, {data}, {other, data}, 0), "sends itself");
  EXPECT_DEATH(call(CommKind::kAllReduce, {data}, {other}, 0), "sends itself");
  EXPECT_DEATH(call(CommKind::kBroadcast, {}, {data}, 0), "broadcast: to receive it has 1 views");
  EXPECT_DEATH(call(CommKind::kBroadcast, {}, {data}, 2), "no such peer");
  const auto ends = [&](CommKind kind, std::vector<uint32_t> send, std::vector<uint32_t> receive) {
    TestOp* const op = New(kind);
    op->send = {data, data};
    op->receive = {data, data};
    op->send_ends = std::move(send);
    op->receive_ends = std::move(receive);
    Enqueue(op, group()[0].get());
  };
  EXPECT_DEATH(ends(CommKind::kAllReduce, {1, 2}, {}), "to send it has ends for 2 ranks, not 0");
  EXPECT_DEATH(ends(CommKind::kAllToAll, {1, 2}, {1}), "to receive it has ends for 1 ranks");
  EXPECT_DEATH(ends(CommKind::kAllToAll, {1, 1}, {1, 2}), "don't lead to the last of 2 views");
  EXPECT_DEATH(ends(CommKind::kAllToAll, {1, 2}, {3, 2}), "don't lead to the last of 2 views");
  EXPECT_DEATH(call(CommKind::kSend, {data}, {}, 0), "the rank itself");
  EXPECT_DEATH(call(CommKind::kSend, {data}, {}, 7), "no such peer");
  data.resize(7);
  other.resize(7);
  EXPECT_DEATH(call(CommKind::kAllReduce, {data}, {other}, 0),
               "7 bytes are no whole number of fp32");
}

}  // namespace
}  // namespace sluice
