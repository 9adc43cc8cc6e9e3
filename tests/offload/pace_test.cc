// When a rank comes to the next round: what it waits for, and what others may wait for.

#include "offload/run/pace.h"

#include <gtest/gtest.h>

#include <chrono>
#include <vector>

namespace sluice {
namespace {

constexpr Nanos kNow{0};
constexpr Nanos kMs = std::chrono::milliseconds(1);

class PaceTest : public testing::Test {
 protected:
  // Everybody hears the same, in the same order.
  void Say(uint32_t rank, Topic topic) {
    for (Pace& pace : paces_) pace.OnSaid(Rank(rank), topic);
  }
  std::vector<Pace> paces_{Pace(Rank(0), 3), Pace(Rank(1), 3), Pace(Rank(2), 3)};
};

// What every rank says sooner or later; the rest nobody waits for.
constexpr Topic kAwaited[] = {Topic::kModel,     Topic::kGradients, Topic::kNothing,
                              Topic::kWindowEnd, Topic::kStep,      Topic::kClear,
                              Topic::kGradient,  Topic::kParams,    Topic::kAccess,
                              Topic::kValue,     Topic::kFetch};

TEST_F(PaceTest, WhoHasSaidMoreThanAnotherComesAtOnce) {
  for (const Topic topic : kAwaited) {
    Say(1, topic);
    EXPECT_TRUE(paces_[1].ahead());
    EXPECT_EQ(kNow, paces_[1].PauseAfter(true));
    for (const uint32_t behind : {0u, 2u}) {
      EXPECT_FALSE(paces_[behind].ahead());
      EXPECT_EQ(4 * kMs, paces_[behind].PauseAfter(true));
    }
    Say(0, topic);
    EXPECT_TRUE(paces_[0].ahead() && paces_[1].ahead() && !paces_[2].ahead());
    Say(2, topic);
    for (Pace& pace : paces_) {
      EXPECT_FALSE(pace.ahead());
      EXPECT_EQ(8 * kMs, pace.PauseAfter(true));
    }
  }
}

TEST_F(PaceTest, WhatNobodyAnswersIsNotWaitedFor) {
  for (const Topic topic : {Topic::kUrgent, Topic::kUnwanted}) {
    Say(1, topic);
    for (Pace& pace : paces_) EXPECT_FALSE(pace.ahead());
  }
}

// Each may wait for the other, for different things.
TEST_F(PaceTest, KindsAreCountedApart) {
  Say(0, Topic::kGradients);
  Say(1, Topic::kFetch);
  EXPECT_TRUE(paces_[0].ahead() && paces_[1].ahead() && !paces_[2].ahead());
}

TEST_F(PaceTest, WhileNobodySaysAnythingPausesGrowUpToABound) {
  for (const bool ahead : {false, true}) {
    SCOPED_TRACE(ahead);
    const Nanos longest = ahead ? 4 * kMs : 32 * kMs;
    if (ahead) Say(0, Topic::kFetch);
    Nanos last = paces_[0].PauseAfter(true);
    for (int i = 0; i < 12; ++i) {
      const Nanos next = paces_[0].PauseAfter(false);
      EXPECT_GT(next, kNow);
      EXPECT_GE(next, last);
      EXPECT_LE(next, longest);
      last = next;
    }
    EXPECT_EQ(longest, last);
    EXPECT_LT(paces_[0].PauseAfter(true), longest);
  }
}

// Ranks that run different units never come to have said the same; a step ends that.
TEST_F(PaceTest, WhatRanksDifferInCountsUntilAllStep) {
  Say(0, Topic::kGradients);
  Say(0, Topic::kFetch);
  for (const uint32_t rank : {0u, 1u}) Say(rank, Topic::kStep);
  EXPECT_TRUE(paces_[0].ahead() && paces_[1].ahead() && !paces_[2].ahead());
  Say(2, Topic::kStep);
  for (Pace& pace : paces_) EXPECT_FALSE(pace.ahead());
}

}  // namespace
}  // namespace sluice
