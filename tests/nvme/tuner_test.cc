// The search over drives that are made up: how fast each is at every point is a formula, so the
// best point of the whole grid is known, and what a measurement adds is noise, a drift, hiccups.

#include "nvme/tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "tests/core/seeds.h"

namespace sluice {
namespace {

const std::vector<IoEngineKind> kEngines = {IoEngineKind::kIoUring, IoEngineKind::kLibaio,
                                            IoEngineKind::kThreads};

// What a measurement adds to the truth.
struct Noise {
  double each = 0;     // standard deviation of its logarithm
  double drift = 0;    // slow, up and down by so much
  double hiccups = 0;  // this share of measurements is 0.6 of the truth
};

// A drive, drawn with a seed.
class Drive {
 public:
  Drive(uint64_t seed, const Noise& noise) : random_(seed), noise_(noise) {
    fill_ = LogUniform(0.2, 4);
    too_deep_ = LogUniform(8, 200);
    deep_cost_ = Uniform(0, 0.3);
    transfer_ = LogUniform(0.01, 0.4);
    too_large_ = LogUniform(0.4, 8);
    large_cost_ = Uniform(0, 0.3);
    merged_ = LogUniform(0.5, 16);
    merge_cost_ = Uniform(0, 0.25);
    call_ = Uniform(0, 0.2);
    best_run_ = LogUniform(0.3, 16);
    run_cost_ = Uniform(0, 0.05);
    for (double& engine : engines_) engine = Uniform(0.6, 1);
    phase_ = Uniform(0, 6.28);
  }

  double Rate(const TunePoint& p) const {
    const double request = Mega(p.request), in_flight = Mega(p.in_flight), run = Mega(p.run);
    double rate = 3e9 * in_flight / (in_flight + fill_) * request / (request + transfer_);
    rate *= std::pow(std::max(in_flight / too_deep_, 1.0), -deep_cost_);
    rate *= std::pow(std::max(request / too_large_, 1.0), -large_cost_);
    rate *= std::pow(std::max(p.batch * request / merged_, 1.0), -merge_cost_);
    rate /= 1 + call_ * 0.25 / (request * p.batch);
    rate *= std::exp(-run_cost_ * std::pow(std::log2(run / best_run_), 2) / 2);
    return rate * engines_[static_cast<size_t>(p.engine) - 1];
  }

  double Measured(const TunePoint& p) {
    ++time_;
    double rate = Rate(p) * (1 + noise_.drift * std::sin(phase_ + time_ / 40.0));
    rate *= std::exp(noise_.each * std::normal_distribution<double>()(random_));
    return Uniform(0, 1) < noise_.hiccups ? rate * 0.6 : rate;
  }

  TunePoint Best(const TuneGrid& grid) const {
    const std::vector<TunePoint> points = grid.Points();
    return *std::ranges::max_element(points, {}, [this](const TunePoint& p) { return Rate(p); });
  }

 private:
  static double Mega(Bytes bytes) { return static_cast<double>(bytes.value()) / (1 << 20); }
  double Uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random_);
  }
  double LogUniform(double low, double high) {
    return std::exp(Uniform(std::log(low), std::log(high)));
  }

  std::mt19937_64 random_;
  const Noise noise_;
  double fill_, too_deep_, deep_cost_, transfer_, too_large_, large_cost_, merged_, merge_cost_;
  double call_, best_run_, run_cost_, phase_;
  double engines_[3];
  int time_ = 0;
};

std::string Text(const TunePoint& p) {
  return fmt::format("engine {}, {} KiB x {}, batch {}, run {} KiB", static_cast<int>(p.engine),
                     p.request.value() >> 10, p.depth(), p.batch, p.run.value() >> 10);
}

struct Weather {
  const char* name;
  Noise noise;
  double often;  // this share of drives is tuned to 0.98 of the best,
  double least;  // and every one to so much
};

// Where noise is small beside the 0.02 that count, nearly all drives are tuned so well: 296 of 300
// drawn drives where it is 1 %. Where a pair of measurements is off by 4 % (3 % each), 20 pairs
// would tell two points apart that differ by 0.02, and a search has 119 pairs for all 2380 points:
// 252 of 300 are tuned so well, and the median one to 0.99. So the limits are what 60 drives out of
// so many fall below once in a thousand times, and neither what was seen of these 60 nor a wish.
class TunerSweepTest : public testing::TestWithParam<Weather> {};
INSTANTIATE_TEST_SUITE_P(
    All, TunerSweepTest,
    testing::Values(Weather{"still", {}, 1, 0.98},
                    Weather{"noisy", {.each = 0.01, .drift = 0.4}, 0.92, 0.93},
                    Weather{"rough", {.each = 0.03, .drift = 0.4, .hiccups = 0.02}, 0.7, 0.8}),
    [](const auto& info) { return info.param.name; });

TEST_P(TunerSweepTest, NearlyTheBestOfTheGridInATenthOfItsPoints) {
  const TuneGrid grid{.engines = kEngines};
  const size_t all = grid.Points().size();
  const std::vector<uint64_t> seeds = Seeds(60);
  size_t good = 0;
  for (const uint64_t seed : seeds) {
    Drive drive(seed, GetParam().noise);
    size_t measured = 0;
    const auto tuning = Tune(grid, {}, [&](const TunePoint& p) {
      EXPECT_TRUE(grid.Has(p)) << Text(p);
      ++measured;
      return drive.Measured(p);
    });
    ASSERT_TRUE(tuning.ok()) << tuning.status();
    EXPECT_EQ(tuning->measurements, measured);
    EXPECT_LE(measured, all / 10);
    const TunePoint best = drive.Best(grid);
    const double share = drive.Rate(tuning->best) / drive.Rate(best);
    EXPECT_GE(share, GetParam().least)
        << "seed " << seed << ": " << Text(tuning->best) << " instead of " << Text(best);
    if (share >= 0.98) ++good;
  }
  EXPECT_GE(static_cast<double>(good), GetParam().often * static_cast<double>(seeds.size()));
}

TEST(TunerTest, WhatItSaysOfThePointsItTriedIsAboutSo) {
  const TuneGrid grid{.engines = kEngines};
  for (const uint64_t seed : Seeds(10)) {
    Drive drive(seed, {.each = 0.005, .drift = 0.4});
    const auto tuning = Tune(grid, {}, [&](const TunePoint& p) { return drive.Measured(p); });
    ASSERT_TRUE(tuning.ok());
    size_t best = 0;
    for (size_t i = 0; i < tuning->tried.size(); ++i) {
      const auto& [point, share] = tuning->tried[i];
      EXPECT_NEAR(share / (drive.Rate(point) / drive.Rate(tuning->best)), 1, 0.06) << Text(point);
      if (point == tuning->best) ++best;
      for (size_t j = 0; j < i; ++j) EXPECT_FALSE(point == tuning->tried[j].point);
    }
    EXPECT_EQ(best, 1u);
  }
}

// Each pair has the best point so far in it, so that the drift of a drive drops out.
TEST(TunerTest, MeasuresInPairsWithOneThatWasThereBefore) {
  std::vector<TunePoint> measured;
  Drive drive(3, {.each = 0.01, .drift = 0.4});
  ASSERT_TRUE(Tune(TuneGrid{.engines = kEngines}, {}, [&](const TunePoint& p) {
                measured.push_back(p);
                return drive.Measured(p);
              }).ok());
  for (size_t i = 2; i + 1 < measured.size(); i += 2) {
    const auto before = measured.begin() + static_cast<ptrdiff_t>(i);
    EXPECT_TRUE(std::find(measured.begin(), before, measured[i]) != before ||
                std::find(measured.begin(), before, measured[i + 1]) != before);
  }
}

TEST(TunerTest, OfEqualsTakesTheFewestBytesInFlight) {
  int right = 0;
  for (const int64_t enough : {2, 4, 16}) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      std::mt19937_64 random(seed);
      const auto tuning = Tune({}, {}, [&](const TunePoint& p) {
        const double share = std::min(1.0, static_cast<double>(p.in_flight.value()) /
                                               static_cast<double>(MiB(enough).value()));
        return 2e9 * share * std::exp(0.003 * std::normal_distribution<double>()(random));
      });
      ASSERT_TRUE(tuning.ok());
      right += tuning->best.in_flight == MiB(enough) ? 1 : 0;
      EXPECT_GE(tuning->best.in_flight, MiB(enough)) << "seed " << seed;
      EXPECT_LE(tuning->best.in_flight, MiB(2 * enough)) << "seed " << seed;
    }
  }
  // Of 30. Fewer bytes are as good if they lose less than 0.006, and noise of 0.003 each takes some
  // that lose nothing for more: 4 of 600 drawn ones. Too few are never taken.
  EXPECT_GE(right, 27);
}

TEST(TunerTest, EndsAtItsLimits) {
  for (const uint32_t most : {0u, 1u, 2u, 3u, 10u, 57u}) {
    uint32_t measured = 0;
    const auto tuning = Tune({}, {.measurements_max = most}, [&](const TunePoint& p) {
      ++measured;
      return static_cast<double>(p.in_flight.value());
    });
    ASSERT_TRUE(tuning.ok());
    EXPECT_LE(measured, most);
  }
  uint32_t measured = 0;
  const auto tuning = Tune({}, {.goes_on = [&] { return measured < 20; }}, [&](const TunePoint&) {
    ++measured;
    return 1e9;
  });
  ASSERT_TRUE(tuning.ok());
  EXPECT_EQ(measured, 20u);
}

TEST(TunerTest, AnErrorEndsIt) {
  for (uint32_t nth = 1; nth < 60; ++nth) {
    uint32_t measured = 0;
    const auto tuning = Tune({}, {}, [&](const TunePoint&) -> absl::StatusOr<double> {
      if (++measured == nth) return absl::DataLossError("the drive");
      return 1e9 + measured;
    });
    EXPECT_TRUE(absl::IsDataLoss(tuning.status()));
    EXPECT_EQ(measured, nth);
  }
}

TEST(TunerTest, AStartOutsideOfTheGridIsRefused) {
  const auto measure = [](const TunePoint&) { return 1e9; };
  for (const TunePoint& start : {TunePoint{.engine = IoEngineKind::kLibaio},
                                 {.request = KiB(576)},
                                 {.batch = 32},
                                 {.in_flight = KiB(512)}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Tune({}, {.start = start}, measure).status()));
  }
}

}  // namespace
}  // namespace sluice
