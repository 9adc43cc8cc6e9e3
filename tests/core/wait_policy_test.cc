// Over machines on which a step takes so long with threads that sleep, and so long with threads
// that spin, beside so many other busy processes; all of which changes.

#include "core/wait_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace sluice {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Nanos Times(Nanos time, double factor) {
  return Nanos(static_cast<int64_t>(static_cast<double>(time.count()) * factor));
}

struct World {
  int cores = 2;
  int team = 2;                       // threads that spin or sleep
  int others = 0;                     // busy processes
  Nanos sleeping = milliseconds(50);  // a step, alone
  Nanos spinning = milliseconds(20);  // likewise
  double slower = 1;        // with threads that spin for one that has no core, beyond its share
  double used = 0.6;        // of their cores, by threads that sleep
  int64_t sleeps = 20'000;  // a second, while threads sleep
  bool says_cores = true;

  bool crowded() const { return team + others > cores; }
  // That spinning ends for others is promised beyond what goes on on any machine.
  bool crowded_by_many() const {
    return crowded() && others > std::max(0.2, 0.03 * cores) * (team + others) / cores;
  }
  // Others leave less than they use.
  bool full() const { return used * team + 2 * others > cores; }
};

// Who has how many cores, when each gets the same share, and what a step takes then.
struct Shares {
  Shares(const World& world, bool spins) {
    const double wanted = spins ? world.team : world.used * world.team;
    const double share = std::min(1.0, world.cores / (wanted + world.others));
    own = wanted * share;
    others = world.others * share;
    step = Times(spins ? world.spinning : world.sleeping,
                 (spins && share < 1 ? world.slower : 1) / share);
  }
  double own;
  double others;
  Nanos step;
};

// Steps, and samples as they come; a step that has begun goes on at the speed of the moment. What
// the kernel says of cores is in ticks.
class Training {
 public:
  explicit Training(uint64_t seed = 1, int cores = 2) : random_(seed), policy_(cores) {}

  // The part of the time in which threads spun.
  double For(Nanos time, const World& world) {
    const Nanos end = sample_.now + time, begin = sample_.now;
    Nanos spun{};
    while (sample_.now < end) {
      const Nanos tick = WaitPolicy::kPeriod + Nanos(random_() % 20'000'000);
      const bool spins = spins_;
      const Shares shares(world, spins);
      for (Nanos left = tick; left > Nanos(0);) {
        const double noise = 0.95 + 0.1 * static_cast<double>(random_() % 1000) / 1000;
        const double step = static_cast<double>(shares.step.count()) * noise;
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
      sample_.sleeps +=
          static_cast<int64_t>(Seconds(tick) * static_cast<double>(spins ? 500 : world.sleeps));
      own_ += Times(tick, shares.own);
      busy_ += Times(tick, shares.own + shares.others);
      if (spins) spun += tick;
      Sample(world);
      switches_ += spins_ != spins;
    }
    return Seconds(spun) / Seconds(sample_.now - begin);
  }
  void Pause(Nanos time) {  // no steps
    sample_.now += time;
    Sample({});
  }
  int switches() const { return switches_; }
  int64_t tries() const { return policy_.tries(); }
  bool spins() const { return spins_; }
  double asked() const { return static_cast<double>(asked_) / static_cast<double>(samples_); }

 private:
  void Sample(const World& world) {
    ++samples_;
    asked_ += policy_.asks_for_cores();
    sample_.cores.reset();
    if (policy_.asks_for_cores() && world.says_cores) {
      Nanos busy = busy_;
      for (int core = 0; core < world.cores; ++core)
        busy += Nanos(static_cast<int64_t>(random_() % 10'000'000) - 5'000'000);
      sample_.cores = {.own = own_, .busy = busy};
    }
    spins_ = policy_.Next(sample_);
  }

  std::mt19937_64 random_;
  WaitPolicy policy_;
  WaitSample sample_{.now = seconds(100)};
  Nanos own_{}, busy_{};
  double done_ = 0;
  bool spins_ = false;
  int switches_ = 0;
  int64_t samples_ = 0, asked_ = 0;
};

struct Machine {
  int cores, team;
};
constexpr Machine kMachines[] = {{2, 2}, {2, 1}, {4, 4}, {8, 8}, {8, 4}, {64, 64}, {64, 32}};

// Alone, and beside others for whom there is room.
TEST(WaitPolicyTest, SpinsWhereThatPaysAndStays) {
  for (const auto [cores, team] : kMachines) {
    for (const int others : {0, 1, (cores - team) / 4}) {
      for (const auto sleeping : {milliseconds(4), milliseconds(30), milliseconds(100)}) {
        for (const double gain : {0.2, 0.5, 0.75}) {
          World world{cores, team, others, sleeping, Times(sleeping, gain)};
          if (world.crowded() || world.full()) continue;
          for (uint64_t seed = 1; seed <= 5; ++seed) {
            SCOPED_TRACE(testing::Message() << cores << " " << team << " " << others << " "
                                            << sleeping.count() << " " << gain << " " << seed);
            world.says_cores = seed > 1;
            Training run(seed, cores);
            run.For(seconds(5), world);
            EXPECT_TRUE(run.spins());
            EXPECT_EQ(1.0, run.For(seconds(300), world));
            EXPECT_EQ(1, run.tries());
          }
        }
      }
    }
  }
}

TEST(WaitPolicyTest, SleepsWhereSpinningDoesNotPayAndRarelyTries) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const double gain : {1.0, 1.1, 2.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << gain << " " << seed);
      const World world{.spinning = Times(milliseconds(50), gain)};
      Training run(seed);
      EXPECT_LT(run.For(seconds(60), world), 0.08);
      EXPECT_LT(run.For(seconds(3600), world), 0.005);
      EXPECT_LE(run.tries(), 25);
      EXPECT_GE(run.tries(), 5);
      EXPECT_LT(run.asked(), 0.03) << "it takes time to find out what the cores do";
    }
  }
}

// Steps that are slow, or fast, for a while and for a reason of their own.
TEST(WaitPolicyTest, WhatComesAndGoesIsNotTakenForWhatSpinningGains) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const double factor : {0.5, 1.3, 2.0, 10.0}) {
      for (const int most_ms : {300, 700, 1200}) {
        SCOPED_TRACE(testing::Message() << factor << " " << most_ms << " " << seed);
        const World usual{.sleeping = milliseconds(50), .spinning = milliseconds(50)};
        World other = usual;
        other.sleeping = other.spinning = Times(usual.sleeping, factor);
        std::mt19937_64 random(seed);
        Training run(seed);
        double spun = 0, time = 0;
        while (time < 1200) {
          const auto odd = milliseconds(100 + random() % most_ms);
          const auto even = milliseconds(2000 + random() % 3000);
          spun += Seconds(odd) * run.For(odd, other) + Seconds(even) * run.For(even, usual);
          time += Seconds(odd + even);
        }
        EXPECT_LT(spun / time, 0.03);
      }
    }
  }
}

// Where others want the cores, where threads rarely sleep, and where steps are long, it is not even
// tried; and nothing is asked of the cores that would not decide it.
TEST(WaitPolicyTest, TriesOnlyWhereItCouldPay) {
  for (const World& world : {World{.spinning = milliseconds(5), .sleeps = 2000},
                             World{.sleeping = seconds(2), .spinning = milliseconds(5)}}) {
    Training run;
    EXPECT_EQ(0.0, run.For(seconds(600), world));
    EXPECT_EQ(0, run.tries());
    EXPECT_EQ(0.0, run.asked());
  }
  for (const auto [cores, team] : kMachines) {
    for (int others = 1; others <= 2 * cores; others += std::max(1, cores / 8)) {
      const World world{cores, team, others, milliseconds(50), milliseconds(5)};
      if (!world.crowded_by_many()) continue;
      SCOPED_TRACE(testing::Message() << cores << " " << team << " " << others);
      Training run(1, cores);
      EXPECT_LT(run.For(seconds(3600), world), 0.002);
      EXPECT_TRUE(!world.full() || run.tries() == 0) << run.tries();
    }
  }
}

// Also where its own steps don't show it.
TEST(WaitPolicyTest, SleepsSoonWhenOthersComeAndSpinsAgainWhenTheyHaveGone) {
  for (const auto [cores, team] : kMachines) {
    for (int others = 1; others <= 2 * cores; others += std::max(1, cores / 8)) {
      for (const double slower : {1.0, 1.5, 50.0}) {
        const World alone{.cores = cores, .team = team};
        World beside = alone;
        beside.others = others;
        beside.slower = slower;
        if (!beside.crowded_by_many()) continue;
        for (uint64_t seed = 1; seed <= 3; ++seed) {
          SCOPED_TRACE(testing::Message()
                       << cores << " " << team << " " << others << " " << slower << " " << seed);
          Training run(seed, cores);
          run.For(seconds(20), alone);
          ASSERT_TRUE(run.spins());
          run.For(milliseconds(500), beside);
          EXPECT_FALSE(run.spins());
          EXPECT_LT(run.For(seconds(300), beside), 0.01);
          run.For(seconds(beside.full() ? 10 : 300), alone);
          EXPECT_TRUE(run.spins());
        }
      }
    }
  }
}

// Where the kernel says nothing of cores, steps do.
TEST(WaitPolicyTest, SleepsSoonWhenStepsTakeLonger) {
  for (const double slower : {1.5, 3.0, 50.0}) {
    World alone;
    alone.says_cores = false;
    World beside = alone;
    beside.others = 1;
    beside.slower = slower;
    Training run;
    run.For(seconds(20), alone);
    ASSERT_TRUE(run.spins());
    run.For(milliseconds(1700), beside);
    EXPECT_FALSE(run.spins()) << slower;
  }
}

TEST(WaitPolicyTest, SleepsWhenNobodyTrains) {
  Training run;
  run.For(seconds(20), World());
  ASSERT_TRUE(run.spins());
  for (int i = 0; i < 10; ++i) run.Pause(milliseconds(100));
  EXPECT_FALSE(run.spins());
  for (int i = 0; i < 100; ++i) run.Pause(seconds(1));
  EXPECT_FALSE(run.spins());
}

// Others that come and go, at any rate: what is lost by tries and by coming late is little.
TEST(WaitPolicyTest, DoesNotFlap) {
  for (const auto [cores, team] : kMachines) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      std::mt19937_64 random(seed);
      Training run(seed, cores);
      double spun_beside = 0, time_beside = 0, time = 0;
      for (int i = 0; i < 200; ++i) {
        const auto span = milliseconds(100 + random() % 8000);
        time += Seconds(span);
        World world{.cores = cores, .team = team};
        if (i % 2 == 0) {
          run.For(span, world);
        } else {
          world.others = 1 + static_cast<int>(random() % static_cast<uint64_t>(2 * cores));
          world.slower = 10;
          if (!world.crowded_by_many()) continue;
          time_beside += Seconds(span);
          spun_beside += Seconds(span) * run.For(span, world);
        }
      }
      EXPECT_LT(spun_beside / time_beside, 0.08) << cores << " " << team << " " << seed;
      EXPECT_LT(run.switches(), time / 2) << cores << " " << team << " " << seed;
    }
  }
}

}  // namespace
}  // namespace sluice
