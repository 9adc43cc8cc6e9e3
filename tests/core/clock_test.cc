#include "core/clock.h"

#include <gtest/gtest.h>
#include <time.h>

namespace sluice {
namespace {

TEST(ClockTest, NeverGoesBack) {
  const SteadyClock clock;
  TimePoint last = clock.Now();
  for (int i = 0; i < 1000; ++i) {
    const TimePoint now = clock.Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

// The C ABI's spans are in nanoseconds of CLOCK_MONOTONIC, and are drawn beside the runtime's own.
TEST(ClockTest, IsTheMonotonicClock) {
  const SteadyClock clock;
  const auto monotonic = [] {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  };
  const Nanos before = monotonic();
  const TimePoint now = clock.Now();
  EXPECT_LE(before, now);
  EXPECT_LE(now, monotonic());
}

TEST(ClockTest, DeadlinesAreBeyondAllTimes) {
  const SteadyClock clock;
  EXPECT_LT(kNoWait, clock.Now());
  EXPECT_GT(kForever, clock.Now());
  EXPECT_EQ(1.5, Seconds(std::chrono::milliseconds(1500)));
}

}  // namespace
}  // namespace sluice
