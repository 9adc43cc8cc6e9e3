// Whole steps over several drives in virtual time: what each holds and moves, and how long it
// takes, by arithmetic from the rates.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/sim/sim_factory.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using ::sluice::testing::Trainer;
using ::sluice::testing::TrainerOptions;

constexpr int64_t kUnits = 12;
constexpr int64_t kChunksOfUnit = 40;
constexpr int64_t kChunkElements = 2 * kCellElements;

ModelSpec Model() {
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u)});
    spec.tensors.push_back({.name = fmt::format("unit{}.weight", u),
                            .unit = UnitIndex(u),
                            .elements = kChunksOfUnit * kChunkElements});
  }
  return spec;
}

// Everything that can be on the drives is, and the drives are what a step waits for.
struct Rig {
  std::vector<double> speeds;  // bytes a second
  std::vector<DriveRate> rates;
  bool overlap = true;
};
RuntimeConfig ConfigOf(const Rig& rig) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.device = DeviceKind::kHost;
  config.workers = 4;
  config.chunk_elements = kChunkElements;
  config.placement.resident_elements_max = 0;
  config.placement.state_buffers = 24;
  config.placement.param_buffers = 24;
  const Bytes unit(2 * kChunksOfUnit * kChunkElements);
  config.budgets.hbm = unit;
  config.budgets.pinned =
      kUnits * unit + 24 * Bytes(12 * kChunkElements) + 24 * Bytes(2 * kChunkElements);
  config.budgets.nvme = GiB(4);
  for (size_t d = 0; d < rig.speeds.size(); ++d)
    config.nvme_paths.push_back(fmt::format("/drive{}", d));
  config.nvme_rates = rig.rates;
  config.io.in_flight_max = 16;
  config.overlap = rig.overlap;
  return config;
}

constexpr double kStateBytes = 12.0 * kChunkElements;  // of a chunk
constexpr double kParamBytes = 2.0 * kChunkElements;

struct Measured {
  double seconds = 0;                 // of one step
  std::vector<double> drive_seconds;  // until the drive has done its part, within 10 ms
  nlohmann::json drives;
  double states = 0;  // bytes that the plan has on the drives
  double params = 0;
  absl::Status status;

  // What a step moves: states in and out, and the parameters' new copies out.
  double step_bytes() const { return 2 * states + params; }
};

// The time of a step that nothing is read ahead of, and after which nothing is fetched.
Measured MeasureStep(const Rig& rig) {
  Measured measured;
  auto sim =
      MakeSimRuntime(Model(), ConfigOf(rig), {.seed = 7, .drive_bytes_per_second = rig.speeds});
  SLUICE_CHECK(sim.ok());
  OffloadRuntime* const runtime = sim->runtime.get();
  Trainer trainer(runtime, Model(), TrainerOptions{.steps = 1});
  const auto wait = [&](Ticket ticket) { measured.status.Update(trainer.Wait(ticket)); };
  measured.status = trainer.Load();
  std::vector<std::byte> grad(2 * kChunksOfUnit * kChunkElements);
  for (uint32_t t = 0; t < kUnits; ++t) wait(runtime->PushGrad(TensorIndex(t), grad));
  wait(runtime->Drain());
  runtime->ResetCounters();
  const TimePoint begin = sim->world->Now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(sim->world->Now() - begin).count();
  };
  wait(runtime->Step({.groups = {Hyperparameters::Of(AdamWHyper{.lr = 0.01})}}));
  const Ticket drained = runtime->Drain();
  std::vector<int64_t> moved(rig.speeds.size(), 0);
  measured.drive_seconds.resize(rig.speeds.size());
  while (!runtime->Wait(drained, std::chrono::milliseconds(10))) {
    const auto drives = nlohmann::json::parse(runtime->ReportJson())["drives"];
    for (size_t d = 0; d < moved.size(); ++d) {
      const int64_t now = drives[d]["writes"];
      if (std::exchange(moved[d], now) != now) measured.drive_seconds[d] = seconds();
    }
  }
  measured.seconds = seconds();
  const auto report = nlohmann::json::parse(runtime->ReportJson());
  measured.drives = report["drives"];
  measured.states = report["nvme"]["states_bytes"];
  measured.params = report["nvme"]["params_bytes"];
  return measured;
}

class DrivesSimTest : public ::testing::Test {
 protected:
  static void ExpectAllMoved(const Measured& measured) {
    EXPECT_GT(measured.states, 0.9 * kUnits * kChunksOfUnit * kStateBytes);
    EXPECT_GT(measured.params, 0.9 * kUnits * kChunksOfUnit * kParamBytes);
    double read = 0;
    double written = 0;
    for (const auto& drive : measured.drives) {
      read += drive["read_bytes"].get<double>();
      written += drive["write_bytes"].get<double>();
      EXPECT_EQ(drive["failed"], 0);
    }
    EXPECT_EQ(read, measured.states);
    EXPECT_EQ(written, measured.states + measured.params);
  }
};

TEST_F(DrivesSimTest, DrivesOfAnyRatesTogetherAreAsFastAsTheirSum) {
  const std::vector<std::vector<double>> all = {
      {5e7}, {4e7, 1e7}, {1e7, 4e7}, {2e7, 2e7}, {3e7, 1e7, 1e7}, {2e7, 1e7, 1e7, 5e6, 5e6}};
  for (const std::vector<double>& speeds : all) {
    SCOPED_TRACE(fmt::format("{} drives, the first of {}", speeds.size(), speeds[0]));
    Rig rig{.speeds = speeds, .rates = {}};
    for (const double speed : speeds) rig.rates.push_back({.read = speed, .write = speed});
    const Measured measured = MeasureStep(rig);
    ASSERT_TRUE(measured.status.ok()) << measured.status;
    ExpectAllMoved(measured);
    const double sum = std::accumulate(speeds.begin(), speeds.end(), 0.0);
    EXPECT_NEAR(measured.seconds / (measured.step_bytes() / sum), 1, 0.05);
    for (size_t d = 0; d < speeds.size(); ++d) {
      const auto& drive = measured.drives[d];
      EXPECT_EQ(drive["path"], fmt::format("/drive{}", d));
      const double share = speeds[d] / sum;
      // Each kind by itself: states are what is read, parameters what is written beyond that.
      EXPECT_NEAR(drive["read_bytes"].get<double>(), share * measured.states, kStateBytes);
      const double params = drive["write_bytes"].get<double>() - drive["read_bytes"].get<double>();
      EXPECT_NEAR(params, share * measured.params, kParamBytes);
      EXPECT_NEAR(drive["in_flight_max"].get<double>(), share * 16, 2);
    }
  }
}

// Nobody said that one drive is slower: it has half of the work, and the step takes what that
// takes.
TEST_F(DrivesSimTest, ADriveSlowerThanItsRateSaysHoldsUpItsHalfOnly) {
  for (const bool slow_first : {false, true}) {
    const Rig rig{.speeds =
                      slow_first ? std::vector<double>{1e7, 4e7} : std::vector<double>{4e7, 1e7}};
    const Measured measured = MeasureStep(rig);
    ASSERT_TRUE(measured.status.ok()) << measured.status;
    ExpectAllMoved(measured);
    EXPECT_NEAR(measured.seconds / (measured.step_bytes() / 2 / 1e7), 1, 0.05);
    // With one queue and buffers for both, the fast drive's last chunk could not be read before all
    // but 24 of the slow one's before it were done.
    const double fast = measured.drive_seconds[slow_first ? 1 : 0];
    EXPECT_NEAR(fast / (measured.step_bytes() / 2 / 4e7), 1, 0.05);
  }
}

// One chunk at a time: nothing overlaps, so the times of the drives add.
TEST_F(DrivesSimTest, WithoutOverlapTheTimesOfTheDrivesAdd) {
  for (const std::vector<double>& speeds : std::vector<std::vector<double>>{{4e7, 1e7}, {3e7}}) {
    Rig rig{.speeds = speeds, .overlap = false};
    const Measured measured = MeasureStep(rig);
    ASSERT_TRUE(measured.status.ok()) << measured.status;
    double expected = 0;
    for (const double speed : speeds)
      expected += measured.step_bytes() / static_cast<double>(speeds.size()) / speed;
    ExpectAllMoved(measured);
    EXPECT_GT(measured.seconds, 0.75 * expected) << "a chunk's two writes may overlap";
  }
}

TEST_F(DrivesSimTest, RatesAreOnePositiveNumberForEachPath) {
  const Rig two{.speeds = {1e7, 1e7}};
  for (const std::vector<DriveRate>& rates : std::vector<std::vector<DriveRate>>{
           {{}}, {{}, {}, {}}, {{}, {.read = 0}}, {{.write = -1}, {}}}) {
    Rig rig = two;
    rig.rates = rates;
    const auto sim = MakeSimRuntime(Model(), ConfigOf(rig), {});
    EXPECT_TRUE(absl::IsInvalidArgument(sim.status())) << sim.status();
  }
}

}  // namespace
}  // namespace sluice
