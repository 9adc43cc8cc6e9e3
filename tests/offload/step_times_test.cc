// Steps, floors and waits are told apart as arithmetic says.

#include "offload/run/step_times.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

namespace sluice {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

HardwareRates SomeRates() { return {.forward_seconds = 1}; }

TEST(StepTimesTest, AStepIsTheTimeFromOneCallToTheNextAgainstTheLesserFloorAroundIt) {
  StepTimes times;
  times.Stepped(seconds(10));
  EXPECT_EQ(times.figures().count, 0) << "nobody knows when it began";
  times.Stepped(seconds(12));
  times.SetRates(SomeRates(), {.total = 1.5});
  times.Stepped(seconds(20));  // rates were measured in it
  times.Stepped(seconds(23));
  times.SetRates(SomeRates(), {.total = 2.5});
  times.Stepped(seconds(30));
  times.Stepped(seconds(34));
  times.SetRates(SomeRates(), {.total = 2});
  times.Stepped(seconds(40));
  times.Stepped(seconds(45));
  const StepTimes::Figures figures = times.figures();
  EXPECT_EQ(figures.count, 4);
  ASSERT_EQ(figures.latest.size(), 4);
  EXPECT_EQ(figures.latest[0].took, seconds(2));
  EXPECT_EQ(figures.latest[0].floor_seconds, std::nullopt) << "no rates were known before it";
  EXPECT_EQ(figures.latest[1].took, seconds(3));
  EXPECT_EQ(figures.latest[1].floor_seconds, 1.5);
  EXPECT_EQ(figures.latest[2].took, seconds(4));
  EXPECT_EQ(figures.latest[2].floor_seconds, 2);
  EXPECT_EQ(figures.latest[3].took, seconds(5));
  EXPECT_EQ(figures.latest[3].floor_seconds, 2);
  EXPECT_EQ(figures.in_all, seconds(35));
}

TEST(StepTimesTest, TheLatestAreKeptInOrder) {
  StepTimes times;
  const auto steps = static_cast<int64_t>(StepTimes::kKept) + 7;
  TimePoint at{0};
  for (int64_t n = 0; n <= steps; ++n) times.Stepped(at += milliseconds(n));
  const StepTimes::Figures figures = times.figures();
  EXPECT_EQ(figures.count, steps);
  ASSERT_EQ(figures.latest.size(), StepTimes::kKept);
  for (size_t i = 0; i < figures.latest.size(); ++i)
    ASSERT_EQ(figures.latest[i].took, milliseconds(8 + i));
}

TEST(StepTimesTest, AWaitIsForOneThingAtATimeAndNeverLongerThanAll) {
  StepTimes times;
  times.Active(seconds(1));
  times.WaitsFor(std::nullopt, seconds(2));
  times.WaitsFor(WaitedFor::kFetch, seconds(3));
  times.WaitsFor(WaitedFor::kFetch, seconds(4));
  EXPECT_TRUE(times.waiting());
  times.WaitsFor(WaitedFor::kDrive, seconds(6));
  times.WaitsFor(std::nullopt, seconds(10));
  EXPECT_FALSE(times.waiting());
  times.WaitsFor(std::nullopt, seconds(11));
  for (size_t w = 0; w < kWaits; ++w)
    times.WaitsFor(static_cast<WaitedFor>(w), seconds(20) + milliseconds(w));
  times.WaitsFor(std::nullopt, seconds(20) + milliseconds(kWaits));
  const StepTimes::Figures figures = times.figures();
  EXPECT_EQ(figures.waited[static_cast<size_t>(WaitedFor::kFetch)], milliseconds(3001));
  EXPECT_EQ(figures.waited[static_cast<size_t>(WaitedFor::kDrive)], milliseconds(4001));
  EXPECT_EQ(figures.waited[static_cast<size_t>(WaitedFor::kUpdate)], milliseconds(1));
  EXPECT_EQ(figures.in_all, milliseconds(19000 + kWaits));
}

TEST(StepTimesTest, AResetForgetsAllButTheRates) {
  StepTimes times;
  times.SetRates(SomeRates(), {.total = 1.5});
  times.Stepped(seconds(1));
  times.Stepped(seconds(2));
  times.WaitsFor(WaitedFor::kRanks, seconds(3));
  times.Reset(seconds(5));
  EXPECT_EQ(times.figures().count, 0);
  EXPECT_EQ(times.figures().in_all, seconds(0));
  times.WaitsFor(std::nullopt, seconds(6));
  times.Stepped(seconds(7));
  times.Stepped(seconds(9));
  const StepTimes::Figures figures = times.figures();
  EXPECT_EQ(figures.count, 1);
  EXPECT_EQ(figures.latest.at(0).took, seconds(2));
  EXPECT_EQ(figures.latest.at(0).floor_seconds, 1.5);
  EXPECT_EQ(figures.waited[static_cast<size_t>(WaitedFor::kRanks)], seconds(1));
  EXPECT_EQ(figures.in_all, seconds(4));
}

TEST(StepTimesTest, FiguresMayBeTakenAndRatesSetFromOtherThreads) {
  StepTimes times;
  std::thread other([&times] {
    for (int i = 0; i < 200; ++i) {
      times.SetRates(SomeRates(), {.total = 1});
      const StepTimes::Figures figures = times.figures();
      const Nanos waited = std::accumulate(figures.waited.begin(), figures.waited.end(), Nanos(0));
      EXPECT_LE(waited, figures.in_all);
    }
  });
  TimePoint now{0};
  for (int i = 0; i < 2000; ++i) {
    times.WaitsFor(WaitedFor::kUpdate, now += milliseconds(1));
    times.WaitsFor(std::nullopt, now += milliseconds(1));
    times.Stepped(now);
  }
  other.join();
  EXPECT_EQ(times.figures().waited[static_cast<size_t>(WaitedFor::kUpdate)], milliseconds(2000));
}

}  // namespace
}  // namespace sluice
