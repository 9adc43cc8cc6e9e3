#include "core/sim_world.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <vector>

#include "tests/core/seeds.h"

namespace sluice {
namespace {

TEST(SimWorldTest, TimePassesFromOneThingToTheNext) {
  SimWorld world(1);
  std::vector<int64_t> times;
  for (const int64_t at : {30, 10, 20})
    world.At(TimePoint(at), [&] { times.push_back(world.Now().count()); });
  EXPECT_EQ(0, world.Now().count());
  while (world.RunNext(kForever)) {
  }
  EXPECT_EQ((std::vector<int64_t>{10, 20, 30}), times);
  EXPECT_EQ(30, world.Now().count()) << "for ever does not pass";
}

TEST(SimWorldTest, ADeadlineThatComesFirstEndsTheWait) {
  SimWorld world(1);
  bool happened = false;
  world.At(TimePoint(100), [&] { happened = true; });
  EXPECT_FALSE(world.RunNext(TimePoint(99)));
  EXPECT_EQ(99, world.Now().count());
  EXPECT_FALSE(world.RunNext(kNoWait));
  EXPECT_EQ(99, world.Now().count()) << "time never goes back";
  EXPECT_FALSE(happened);
  EXPECT_TRUE(world.RunNext(TimePoint(100)));
  EXPECT_TRUE(happened);
}

TEST(SimWorldTest, WhatIsLateHappensNow) {
  SimWorld world(1);
  EXPECT_FALSE(world.RunNext(TimePoint(50)));
  int64_t at = 0;
  world.At(TimePoint(10), [&] { at = world.Now().count(); });
  EXPECT_TRUE(world.RunNext(kNoWait) || world.RunNext(TimePoint(50)));
  EXPECT_EQ(50, at);
}

// The order of ten things that happen at one time.
std::vector<int> OrderOf(uint64_t seed) {
  SimWorld world(seed);
  std::vector<int> order;
  for (int i = 0; i < 10; ++i) world.At(TimePoint(5), [&order, i] { order.push_back(i); });
  while (world.RunNext(kForever)) {
  }
  return order;
}

TEST(SimWorldTest, TheSeedDecidesTheOrderOfWhatIsSimultaneous) {
  std::set<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(OrderOf(seed), OrderOf(seed));
    orders.insert(OrderOf(seed));
  }
  EXPECT_GT(orders.size(), 45u);
}

TEST(SimWorldTest, NumbersStayInTheirRangeAndReachItsEnds) {
  SimWorld world(7);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(world.Uniform(3, 7));
  EXPECT_EQ((std::set<uint64_t>{3, 4, 5, 6, 7}), seen);
  EXPECT_EQ(9u, world.Uniform(9, 9));
  (void)world.Uniform(0, UINT64_MAX);
  int hits = 0;
  for (int i = 0; i < 4000; ++i) hits += world.OneIn(4) ? 1 : 0;
  EXPECT_NEAR(1000, hits, 150);
}

TEST(SimWorldTest, AWakeIsTakenOnce) {
  SimWorld world(1);
  EXPECT_FALSE(world.TakeWake());
  world.Wake();
  world.Wake();
  EXPECT_TRUE(world.TakeWake());
  EXPECT_FALSE(world.TakeWake());
}

TEST(SimWorldTest, TheLogHasTimes) {
  SimWorld world(1);
  world.Log("begins");
  world.At(TimePoint(1500), [&] { world.Log("ends"); });
  world.RunNext(kForever);
  EXPECT_EQ("0 begins\n1500 ends\n", world.log());
}

TEST(SeedsTest, AreAsManyAsTheTestSaysOrTheEnvironmentWants) {
  ASSERT_EQ(0, unsetenv("SLUICE_SIM_SEEDS"));
  ASSERT_EQ(0, unsetenv("SLUICE_SIM_FIRST_SEED"));
  EXPECT_EQ((std::vector<uint64_t>{1, 2, 3}), Seeds(3));
  ASSERT_EQ(0, setenv("SLUICE_SIM_SEEDS", "2", 1));
  ASSERT_EQ(0, setenv("SLUICE_SIM_FIRST_SEED", "70", 1));
  EXPECT_EQ((std::vector<uint64_t>{70, 71, 72, 73}), Seeds(2));
  for (const char* wrong : {"0", "many", "3x", "-1"}) {
    ASSERT_EQ(0, setenv("SLUICE_SIM_SEEDS", wrong, 1));
    EXPECT_DEATH(Seeds(2), "SLUICE_SIM_SEEDS is '.*'; it must be a positive number");
  }
  ASSERT_EQ(0, unsetenv("SLUICE_SIM_SEEDS"));
  ASSERT_EQ(0, unsetenv("SLUICE_SIM_FIRST_SEED"));
}

}  // namespace
}  // namespace sluice
