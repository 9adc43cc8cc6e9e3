// Over worlds in which a step takes so long with threads that sleep, and so long with threads that
// spin, and which change.

#include "core/wait_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace sluice {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct World {
  Nanos sleeping;              // a step
  Nanos spinning;              // likewise
  int64_t sleeps = 20'000;     // a second, while threads sleep
  double waited = 0.05;        // of the time, for cores, while threads sleep
  double waited_spinning = 1;  // while they spin: ours wait for ours, too
};

// Steps, and samples as they come; a step that has begun goes on at the speed of the moment.
class Training {
 public:
  explicit Training(uint64_t seed = 1) : random_(seed) {}

  // The part of the time in which threads spun.
  double For(Nanos time, const World& world) {
    const Nanos end = sample_.now + time, begin = sample_.now;
    Nanos spun{};
    while (sample_.now < end) {
      const Nanos tick = WaitPolicy::kPeriod + Nanos(random_() % 20'000'000);
      const bool spins = spins_;
      for (Nanos left = tick; left > Nanos(0);) {
        const double noise = 0.95 + 0.1 * static_cast<double>(random_() % 1000) / 1000;
        const double step =
            static_cast<double>((spins ? world.spinning : world.sleeping).count()) * noise;
        const auto needed = Nanos(static_cast<int64_t>((1 - done_) * step));
        const Nanos now = std::min(left, needed);
        done_ += static_cast<double>(now.count()) / step;
        left -= now;
        sample_.now += now;
        if (now < needed) continue;
        done_ = 0;
        ++sample_.steps;
        sample_.last_step = sample_.now;
      }
      const double part = Seconds(tick);
      sample_.sleeps +=
          static_cast<int64_t>(part * static_cast<double>(spins ? 500 : world.sleeps));
      const double waited = spins ? world.waited_spinning : world.waited;
      sample_.waited += Nanos(static_cast<int64_t>(static_cast<double>(tick.count()) * waited));
      if (spins) spun += tick;
      spins_ = policy_.Next(sample_);
      switches_ += spins_ != spins;
    }
    return Seconds(spun) / Seconds(sample_.now - begin);
  }
  void Pause(Nanos time) {  // no steps
    sample_.now += time;
    spins_ = policy_.Next(sample_);
  }
  int switches() const { return switches_; }
  int64_t tries() const { return policy_.tries(); }
  bool spins() const { return spins_; }

 private:
  std::mt19937_64 random_;
  WaitPolicy policy_;
  WaitSample sample_{.now = seconds(100)};
  double done_ = 0;
  bool spins_ = false;
  int switches_ = 0;
};

TEST(WaitPolicyTest, SpinsWhereThatPaysAndStays) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const auto sleeping : {milliseconds(4), milliseconds(30), milliseconds(100)}) {
      for (const double gain : {0.2, 0.5, 0.75}) {
        SCOPED_TRACE(testing::Message() << sleeping.count() << " " << gain << " " << seed);
        const World world{
            sleeping,
            Nanos(static_cast<int64_t>(gain * static_cast<double>(Nanos(sleeping).count())))};
        Training run(seed);
        run.For(seconds(5), world);
        EXPECT_TRUE(run.spins());
        EXPECT_EQ(1.0, run.For(seconds(600), world));
        EXPECT_EQ(1, run.switches());
      }
    }
  }
}

TEST(WaitPolicyTest, SleepsWhereSpinningDoesNotPayAndRarelyTries) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const double gain : {1.0, 1.1, 2.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << gain << " " << seed);
      const World world{milliseconds(50), Nanos(static_cast<int64_t>(gain * 50e6))};
      Training run(seed);
      EXPECT_LT(run.For(seconds(60), world), 0.08);
      EXPECT_LT(run.For(seconds(3600), world), 0.005);
      EXPECT_LE(run.tries(), 25);
      EXPECT_GE(run.tries(), 5);
    }
  }
}

// Where somebody wants the cores, where threads rarely sleep, and where steps are long, it is not
// even tried.
TEST(WaitPolicyTest, TriesOnlyWhereItCouldPay) {
  const World worlds[] = {
      {.sleeping = milliseconds(50), .spinning = milliseconds(5), .waited = 0.5},
      {.sleeping = milliseconds(50), .spinning = milliseconds(5), .waited = 3},
      {.sleeping = milliseconds(50), .spinning = milliseconds(5), .sleeps = 2000},
      {.sleeping = seconds(2), .spinning = milliseconds(5)},
  };
  for (const World& world : worlds) {
    Training run;
    EXPECT_EQ(0.0, run.For(seconds(600), world));
    EXPECT_EQ(0, run.tries());
  }
}

TEST(WaitPolicyTest, SleepsSoonWhenOthersCome) {
  const World alone{milliseconds(100), milliseconds(30)};
  for (const double slower : {1.5, 3.0, 50.0}) {
    World beside = alone;
    beside.waited = 0.6;
    beside.sleeping = milliseconds(120);
    beside.spinning = Nanos(static_cast<int64_t>(slower * 120e6));
    Training run;
    run.For(seconds(20), alone);
    ASSERT_TRUE(run.spins());
    run.For(milliseconds(1700), beside);
    EXPECT_FALSE(run.spins()) << slower;
    EXPECT_EQ(0.0, run.For(seconds(300), beside));
    run.For(seconds(10), alone);
    EXPECT_TRUE(run.spins()) << "they have gone";
  }
}

TEST(WaitPolicyTest, SleepsWhenNobodyTrains) {
  Training run;
  run.For(seconds(20), {milliseconds(100), milliseconds(30)});
  ASSERT_TRUE(run.spins());
  for (int i = 0; i < 10; ++i) run.Pause(milliseconds(100));
  EXPECT_FALSE(run.spins());
  for (int i = 0; i < 100; ++i) run.Pause(seconds(1));
  EXPECT_FALSE(run.spins());
}

// Others that come and go, at any rate: what is lost by tries and by coming late is little.
TEST(WaitPolicyTest, DoesNotFlap) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    std::mt19937_64 random(seed);
    const World alone{milliseconds(50), milliseconds(20)};
    const World beside{milliseconds(60), milliseconds(500), 20'000, 0.7};
    Training run(seed);
    double spun_beside = 0, time_beside = 0, time = 0;
    for (int i = 0; i < 200; ++i) {
      const auto span = milliseconds(100 + random() % 8000);
      time += Seconds(span);
      if (i % 2 == 0) {
        run.For(span, alone);
      } else {
        time_beside += Seconds(span);
        spun_beside += Seconds(span) * run.For(span, beside);
      }
    }
    EXPECT_LT(spun_beside / time_beside, 0.15) << seed;
    EXPECT_LT(run.switches(), time / 3) << seed;
  }
}

}  // namespace
}  // namespace sluice
