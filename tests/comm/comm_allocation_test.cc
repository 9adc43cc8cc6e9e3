// An operation like one before allocates nothing, on no thread, whatever carries it out. (The
// simulated ranks may.)

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/comm/comm_fixture.h"
#include "tests/comm/counting_new.h"
#include "tests/comm/exchange.h"

namespace sluice {
namespace {

using CommAllocationTest = CommFixture;
INSTANTIATE_TEST_SUITE_P(All, CommAllocationTest, testing::ValuesIn(kCommImplementations), NameOf);

TEST_P(CommAllocationTest, NothingIsAllocatedPerOperation) {
  constexpr uint32_t kRanks = 3;
  Start(kRanks);
  if (world() != nullptr) GTEST_SKIP() << "a simulation allocates freely";
  std::mt19937 random(1);
  std::deque<Exchange> exchanges;
  std::vector<std::pair<uint32_t, TestOp*>> calls;
  for (int i = 0; i < 60; ++i) {
    const auto kind = static_cast<CommKind>(i % kCommKindCount);
    if (kind == CommKind::kReceive) continue;  // comes with its send
    Exchange& exchange = exchanges.emplace_back(kind, FloatType::kF32, kRanks, false, &random);
    for (uint32_t r = 0; r < kRanks; ++r) {
      if (!exchange.takes_part(r)) continue;
      calls.emplace_back(r, New(CommKind::kBarrier));
      exchange.Describe(r, calls.back().second);
    }
  }
  int64_t before = 0;
  for (int round = 0; round < 4; ++round) {
    if (round == 2) before = news;  // the first ones have made what there must be
    for (const auto& [rank, op] : calls) {
      op->ended = false;
      Enqueue(op, group()[rank].get());
    }
    WaitForAll();
  }
  EXPECT_EQ(before, news);
  for (const auto& [rank, op] : calls) EXPECT_TRUE(op->op.status.ok()) << op->op.status;
}

}  // namespace
}  // namespace sluice
