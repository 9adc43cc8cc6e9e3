// Tuning drives whose rates are formulas: how near the best it comes, what that takes, and that
// nothing is taken on trust.

#include "nvme/drive_tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "core/status.h"
#include "tests/nvme/model_drive.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::HasSubstr;

const std::vector<IoEngineKind> kEngines = {IoEngineKind::kIoUring, IoEngineKind::kLibaio,
                                            IoEngineKind::kThreads};
const DriveModel kModels[] = {
    {.name = "plain"},
    {.name = "far", .answer = 2e-3},
    {.name = "large", .transfer = 60e-6, .engines = {0.7, 1, 0.9}},
    {.name = "merges", .merged_above = 1, .merge_cost = 0.12},
    {.name = "shallow", .call = 5e-6, .deep_above = 4, .deep_cost = 0.1},
    {.name = "slow", .bytes_per_second = 2e8, .answer = 5e-3, .engines = {0.9, 0.9, 1}},
    {.name = "fast", .bytes_per_second = 12e9, .answer = 80e-6, .transfer = 3e-6, .call = 4e-6}};

// A drive, and all that a tuning of it needs.
struct Rig {
  explicit Rig(const DriveModel& model = kModels[0], Bytes write_max = GiB(2), double seconds = 40)
      : drive(model, sizes) {
    options.write_max = write_max;
    options.seconds = seconds;
    options.stop = &stop;
    Make();
  }
  void Make() {
    const auto make =
        [this](IoEngineKind kind,
               const IoEngine::Limits& limits) -> absl::StatusOr<std::unique_ptr<IoEngine>> {
      if (kind == refused) return absl::UnavailableError("none of these");
      return drive.MakeEngine(kind, limits);
    };
    tuner = std::make_unique<DriveTuner>(sizes, make, memory.view(), &drive, options);
  }

  // All of it. What is not looked at is not copied.
  absl::StatusOr<DriveTuner::Settled> Tune() {
    const TunePoint untuned = UntunedPoint(kEngines[0]);
    drive.copies = true;
    SLUICE_RETURN_IF_ERROR(tuner->Fill(untuned));
    drive.copies = false;
    SLUICE_ASSIGN_OR_RETURN(tuning, tuner->Search(kEngines, untuned));
    drive.copies = true;
    return tuner->Settle(untuned, &tuning);
  }

  std::atomic<bool> stop{false};
  IoEngineKind refused = IoEngineKind::kAuto;
  std::vector<Bytes> sizes = {MiB(48), MiB(16)};
  ModelDrive drive;
  AlignedBuffer memory{kTuneInFlightMax.size()};
  DriveTuner::Options options;
  std::unique_ptr<DriveTuner> tuner;
  Tuning tuning;
};

class DriveTunerSweepTest : public testing::TestWithParam<DriveModel> {};
INSTANTIATE_TEST_SUITE_P(All, DriveTunerSweepTest, testing::ValuesIn(kModels),
                         [](const auto& info) { return info.param.name; });

// The other way would be to measure each point of the grid by itself, for as long as is usual,
// which is seconds: one is counted.
TEST_P(DriveTunerSweepTest, NearlyTheBestOfTheGridInATenthOfItsTimeAndBytes) {
  const DriveModel& model = GetParam();
  Rig rig(model, GiB(16));
  const auto settled = rig.Tune();
  ASSERT_TRUE(settled.ok()) << settled.status();
  const TuneGrid grid = TuneGridOf(kEngines);
  const TunePoint best = model.Best(grid);
  EXPECT_GE(model.Rate(rig.tuning.best), 0.98 * model.Rate(best));
  double seconds = 0, bytes = 0;
  for (const TunePoint& point : grid.Points()) {
    seconds += 1;
    bytes += model.Rate(point);
  }
  EXPECT_LE(Seconds(rig.drive.Now()), seconds / 10);
  EXPECT_LE(2.0 * static_cast<double>(rig.drive.written), bytes / 10);
  // What it says of itself is what the formula says.
  const TunedSettings& s = settled->settings;
  for (const double rate : {s.read_rate, s.write_rate, s.mixed_rate})
    EXPECT_NEAR(rate / model.Rate(rig.tuning.best), 1, 0.07);  // it ends, and the formula doesn't
  EXPECT_NEAR(settled->untuned_rate / model.Rate(UntunedPoint(kEngines[0])), 1, 0.07);
  EXPECT_EQ(s.depth * s.request, rig.tuning.best.in_flight);
  EXPECT_LE(settled->untuned_rate, s.mixed_rate);
  EXPECT_GT(settled->checked, rig.tuner->area() / 2);
  EXPECT_EQ(rig.tuner->written(), Bytes(rig.drive.written));
}

TEST(DriveTunerTest, NeverWritesMoreOrTakesLongerThanItMay) {
  for (const Bytes write_max : {kTuneWriteMin, GiB(3)}) {
    for (const double seconds : {1.0, 40.0}) {
      for (const double rate : {5e7, 2e10}) {
        SCOPED_TRACE(testing::Message()
                     << write_max.value() << " bytes, " << seconds << " s, at " << rate);
        DriveModel model{.bytes_per_second = rate};
        Rig rig(model, write_max, seconds);
        const auto settled = rig.Tune();
        ASSERT_TRUE(settled.ok()) << settled.status();
        EXPECT_LE(Bytes(rig.drive.written), write_max);
        // A step that is late still has one round, each part of it with what is in flight.
        EXPECT_LE(Seconds(rig.drive.Now()), seconds + 12 * 8.4e6 / (0.6 * rate));
      }
    }
  }
}

TEST(DriveTunerTest, WrongDataEndsIt) {
  Rig rig;
  ASSERT_TRUE(rig.tuner->Fill(UntunedPoint(kEngines[0])).ok());
  rig.drive.corrupts_at = rig.drive.transfers;
  rig.tuning.best = UntunedPoint(kEngines[1]);
  const auto settled = rig.tuner->Settle(UntunedPoint(kEngines[0]), &rig.tuning);
  EXPECT_TRUE(absl::IsDataLoss(settled.status())) << settled.status();
  EXPECT_THAT(std::string(Message(settled.status())), HasSubstr("is not what was written there"));
}

TEST(DriveTunerTest, TheFirstErrorEndsIt) {
  Rig whole(kModels[0], kTuneWriteMin);
  ASSERT_TRUE(whole.Tune().ok());
  const int64_t all = whole.drive.transfers;
  for (int64_t nth = 0; nth < all; nth += 1 + all / 12) {
    Rig rig(kModels[0], kTuneWriteMin);
    rig.drive.fails_at = nth;
    const auto settled = rig.Tune();
    EXPECT_THAT(std::string(Message(settled.status())), HasSubstr("EIO")) << nth;
    EXPECT_LE(rig.drive.transfers, nth + 128);  // and what was in flight
  }
}

TEST(DriveTunerTest, StoppedIsCancelled) {
  Rig rig(kModels[0], kTuneWriteMin);
  int said = 0;
  int all = INT32_MAX;
  rig.options.progress = [&](double, std::string_view) { rig.stop = ++said > all; };
  rig.Make();
  ASSERT_TRUE(rig.Tune().ok());
  for (all = said - 1; all >= 0; --all) {
    said = 0;
    rig.stop = false;
    rig.Make();
    EXPECT_TRUE(absl::IsCancelled(rig.Tune().status())) << all;
  }
}

TEST(DriveTunerTest, ProgressGoesOnFromNothingToAll) {
  Rig rig(kModels[0], kTuneWriteMin);
  double last = 0;
  rig.options.progress = [&](double part, std::string_view what) {
    EXPECT_GE(part, last) << what;
    EXPECT_LE(part, 1);
    EXPECT_FALSE(what.empty());
    last = part;
  };
  rig.Make();
  ASSERT_TRUE(rig.Tune().ok());
  EXPECT_GT(last, 0.8);
}

TEST(DriveTunerTest, AnEngineThatCannotBeHadIsNotTakenAndThatIsSaid) {
  Rig rig(kModels[2], GiB(4));  // where it would be the best
  rig.refused = IoEngineKind::kLibaio;
  const auto settled = rig.Tune();
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_NE(settled->settings.engine, IoEngineKind::kLibaio);
  EXPECT_EQ(rig.tuner->refused(), "none of these");
  rig.refused = IoEngineKind::kIoUring;  // which all begins with
  EXPECT_EQ(Message(rig.tuner->Fill(UntunedPoint(kEngines[0]))), "none of these");
}

TEST(DriveTunerTest, WhatIsWorseThanUntunedIsNotTaken) {
  Rig rig;
  const TunePoint untuned = UntunedPoint(kEngines[0]);
  ASSERT_TRUE(rig.tuner->Fill(untuned).ok());
  const TunePoint worse{.engine = kEngines[1], .in_flight = MiB(4)};
  rig.tuning = {.best = worse, .tried = {{worse, 1}}};
  const auto settled = rig.tuner->Settle(untuned, &rig.tuning);
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_EQ(settled->settings.engine, untuned.engine);
  EXPECT_EQ(settled->settings.depth, untuned.depth());
  EXPECT_EQ(settled->settings.mixed_rate, settled->untuned_rate);
  EXPECT_EQ(rig.tuning.best, untuned);
  ASSERT_EQ(rig.tuning.tried.size(), 2u);
  EXPECT_NEAR(rig.tuning.tried[0].share, kModels[0].Rate(worse) / kModels[0].Rate(untuned), 0.05);
  EXPECT_EQ(rig.tuning.tried[1].point, untuned);
  EXPECT_EQ(rig.tuning.tried[1].share, 1);
}

TEST(DriveTunerTest, OfAFewPointsTheBestIsTaken) {
  const DriveModel& model = kModels[3];
  Rig rig(model);
  ASSERT_TRUE(rig.tuner->Fill(UntunedPoint(kEngines[0])).ok());
  const std::vector<TunePoint> points = {
      {.batch = 16}, {.batch = 1}, {.request = MiB(2), .batch = 4}};
  const auto tuning = rig.tuner->BestOf(points);
  ASSERT_TRUE(tuning.ok()) << tuning.status();
  EXPECT_EQ(tuning->best, points[1]);
  ASSERT_EQ(tuning->tried.size(), 3u);
  for (const auto& [point, share] : tuning->tried)
    EXPECT_NEAR(share, model.Rate(point) / model.Rate(points[1]), 0.03);
}

}  // namespace
}  // namespace sluice
