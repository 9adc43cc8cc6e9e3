// A recorded step, replayed: with what it was recorded with it takes what it took, and with other
// budgets and rates what the whole training takes with them. Times are virtual.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/sim/many_ranks.h"
#include "offload/sim/replay.h"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kUnits = 8;
constexpr int64_t kTensor = 12 * kCellElements;
constexpr int64_t kElements = int64_t{kUnits} * 3 * kTensor;  // 1.2 million
constexpr int kWorkers = 2;

ModelSpec Model() {
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("layer {}", u)});
    for (int t = 0; t < 3; ++t) {
      spec.tensors.push_back({.name = fmt::format("layer {} part {}", u, t),
                              .unit = UnitIndex(u),
                              .elements = kTensor});
    }
  }
  return spec;
}

// Of which tiers there is how much, as a share of what would hold all.
struct Case {
  const char* name;
  double hbm;     // of parameters
  double pinned;  // of states; gradients, parameters and buffers have room beside them
  bool gradients_fit = true;
  bool in_place = true;
  int micro_steps = 1;
  bool overlap = true;
};
const Case kCases[] = {
    {.name = "everything in RAM", .hbm = 2, .pinned = 2},
    {.name = "units move", .hbm = 0.4, .pinned = 2},
    {.name = "units move over a link", .hbm = 0.4, .pinned = 2, .in_place = false},
    {.name = "half of the states on drives", .hbm = 0.5, .pinned = 0.5},
    {.name = "all states on drives, a link", .hbm = 0.5, .pinned = 0, .in_place = false},
    {.name = "gradients on drives too", .hbm = 0.4, .pinned = 0, .gradients_fit = false},
    {.name = "two micro-steps", .hbm = 0.4, .pinned = 0.2, .micro_steps = 2},
    {.name = "without overlap", .hbm = 0.5, .pinned = 0.5, .overlap = false},
};

Budgets BudgetsOf(const Case& c) {
  const auto bytes = [](double share, int64_t each) {
    return Bytes(static_cast<int64_t>(share * static_cast<double>(each * kElements)));
  };
  const Bytes beside = c.gradients_fit ? Bytes(4 * kElements) + MiB(3) : MiB(2);
  return {.hbm = bytes(c.hbm, 2), .pinned = bytes(c.pinned, 12) + beside, .nvme = GiB(1)};
}

RuntimeConfig ConfigOf(const Case& c) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.workers = kWorkers;
  config.chunk_elements = 4 * kCellElements;
  config.placement.resident_elements_max = 0;
  config.placement.state_buffers = config.placement.param_buffers = 4;
  config.placement.grad_buffers = 4;
  config.budgets = BudgetsOf(c);
  config.nvme_paths = {"a", "b"};
  config.link_bytes_per_second = c.in_place ? 0 : 1;
  config.overlap = c.overlap;
  config.trace_spans_max = 1;
  return config;
}

// So that compute, drives and updates take about as long.
constexpr HardwareRates kRates = {.nvme_bytes = 1e9,
                                  .update_elements = 2e8,
                                  .checksum_bytes = 2e10,
                                  .copy_bytes = 4e9,
                                  .shared_cores = false};

SimHosts HostsOf(const Case& c, double drive) {
  SimHosts hosts;
  hosts.workers = kWorkers;
  hosts.drive_bytes_per_second = drive;
  hosts.link_bytes_per_second = kRates.copy_bytes;
  // What a worker does, by hand: an update of what a drive brought checks 24 bytes.
  const double update = kRates.update_elements / kWorkers;
  const double copy = c.in_place ? kRates.copy_bytes / kWorkers : 14 * update;
  const auto set = [&hosts](TaskKind kind, double rate) {
    hosts.work.per_second[static_cast<size_t>(kind)] = rate;
  };
  set(TaskKind::kUpdate, update);
  set(TaskKind::kStream, 1 / (1 / update + 24 / (kRates.checksum_bytes / kWorkers)));
  set(TaskKind::kCopy, copy);
  set(TaskKind::kTake, copy / 4);
  set(TaskKind::kCheck, kRates.checksum_bytes / kWorkers);
  return hosts;
}

struct Trained {
  double step = 0;
  std::string recording;  // JSON
};
Trained Train(const Case& c, const RuntimeConfig& config, double drive = kRates.nvme_bytes) {
  SimHosts hosts = HostsOf(c, drive);
  Trained trained;
  hosts.at_end = [&trained](const OffloadRuntime& runtime) {
    trained.recording = runtime.RecordingJson();
  };
  const auto training = SimulateTraining(Model(), config, hosts,
                                         {.steps = 6,
                                          .forward = std::chrono::microseconds(500),
                                          .backward = std::chrono::microseconds(1000),
                                          .micro_steps = c.micro_steps});
  SLUICE_CHECK_MSG(training.ok(), Message(training.status()));
  trained.step = training->StepSeconds();
  return trained;
}

Recording Read(const std::string& json) {
  absl::StatusOr<Recording> recording = ReadRecording(Json::parse(json));
  SLUICE_CHECK_MSG(recording.ok(), Message(recording.status()));
  return *std::move(recording);
}

Replay Again(const Recording& recording, const ReplayOptions& options) {
  const absl::StatusOr<Replay> replay = ReplayStep(recording, options);
  SLUICE_CHECK_MSG(replay.ok(), Message(replay.status()));
  return *replay;
}

double Sum(const std::array<double, kWaits>& seconds) {
  double sum = 0;
  for (const double one : seconds) sum += one;
  return sum;
}

TEST(ReplaySimTest, WithItsOwnBudgetsAndRatesItTakesWhatItTook) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const Trained trained = Train(c, ConfigOf(c));
    const Recording recording = Read(trained.recording);
    const Replay replay = Again(recording, {.budgets = BudgetsOf(c), .rates = kRates});
    EXPECT_NEAR(replay.step_seconds / trained.step, 1, 0.05);
    EXPECT_NEAR(replay.own_seconds, 8 * 1.5e-3 * c.micro_steps, 1e-3);
    EXPECT_NEAR(replay.own_seconds + Sum(replay.waited_seconds), replay.step_seconds,
                0.05 * replay.step_seconds);
    EXPECT_GT(replay.step_seconds, 0.98 * replay.floor.total) << "nothing is below the floor";
    EXPECT_EQ(recording.step_seconds.has_value(), true);
  }
}

// What it says of other budgets and drives is what a training with them takes.
TEST(ReplaySimTest, WithOthersItTakesWhatATrainingWithThemTakes) {
  const Case& from = kCases[3];
  const Recording recording = Read(Train(from, ConfigOf(from)).recording);
  for (const double pinned : {0.0, 0.25, 0.75, 2.0}) {
    for (const double drive : {4e8, 4e9}) {
      Case c = from;
      c.pinned = pinned;
      SCOPED_TRACE(fmt::format("{} of states in RAM, {:.0f} MB/s", pinned, drive / 1e6));
      HardwareRates rates = kRates;
      rates.nvme_bytes = drive;
      const Replay replay = Again(recording, {.budgets = BudgetsOf(c), .rates = rates});
      EXPECT_NEAR(replay.step_seconds / Train(c, ConfigOf(c), drive).step, 1, 0.05);
    }
  }
}

TEST(ReplaySimTest, MoreOfATierIsNeverSlowerAndOfTheScarceOneFaster) {
  const Case& from = kCases[3];
  const Recording recording = Read(Train(from, ConfigOf(from)).recording);
  const auto with = [&](double pinned, double hbm) {
    Case c = from;
    c.pinned = pinned;
    c.hbm = hbm;
    return Again(recording, {.budgets = BudgetsOf(c), .rates = kRates});
  };
  double before = with(0, 0.5).step_seconds;
  for (const double pinned : {0.25, 0.5, 0.75}) {
    const double now = with(pinned, 0.5).step_seconds;
    EXPECT_LT(now, 0.95 * before) << pinned;
    before = now;
  }
  EXPECT_LE(with(0.5, 2).step_seconds, 1.01 * with(0.5, 0.4).step_seconds);
  const Replay scarce = with(0, 0.5), plenty = with(2, 0.5);
  const auto drive = static_cast<size_t>(WaitedFor::kDrive);
  EXPECT_GT(scarce.waited_seconds[drive], 0.3 * scarce.step_seconds);
  EXPECT_EQ(plenty.waited_seconds[drive], 0);
  EXPECT_EQ(plenty.planned.nvme, Bytes(0));
}

TEST(ReplaySimTest, ScaledDownItTakesAboutAsLong) {
  for (const Case& c : {kCases[1], kCases[3], kCases[4]}) {
    SCOPED_TRACE(c.name);
    const Recording recording = Read(Train(c, ConfigOf(c)).recording);
    const Replay whole = Again(recording, {.budgets = BudgetsOf(c), .rates = kRates});
    const Replay scaled =
        Again(recording, {.budgets = BudgetsOf(c), .rates = kRates, .elements_max = kElements / 3});
    EXPECT_NEAR(scaled.scale, 3, 0.1);
    EXPECT_NEAR(scaled.step_seconds / whole.step_seconds, 1, 0.1);
    EXPECT_EQ(scaled.floor.total, whole.floor.total);
    EXPECT_EQ(scaled.planned.pinned, whole.planned.pinned);
  }
}

// Of a GPU only the two sums are known: they are spread over the units, by their elements.
TEST(ReplaySimTest, ComputeOfAGpuIsWhatRatesSay) {
  const Case& c = kCases[2];
  const Trained trained = Train(c, ConfigOf(c));
  Json json = Json::parse(trained.recording);
  json["report"]["device"] = "CUDA: one";
  const Recording recording = Read(json.dump());
  HardwareRates rates = kRates;
  EXPECT_EQ(ReplayStep(recording, {.budgets = BudgetsOf(c), .rates = rates}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  rates.forward_seconds = 8 * 500e-6;
  rates.backward_seconds = 8 * 1000e-6;
  const Replay replay = Again(recording, {.budgets = BudgetsOf(c), .rates = rates});
  EXPECT_NEAR(replay.own_seconds, 12e-3, 1e-6);
  EXPECT_NEAR(replay.step_seconds / trained.step, 1, 0.05);
}

TEST(ReplaySimTest, WithoutATraceNoCallsAreRecorded) {
  RuntimeConfig config = ConfigOf(kCases[0]);
  config.trace_spans_max = 0;
  const auto read = ReadRecording(Json::parse(Train(kCases[0], config).recording));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition);
}

// Any value of a recording that is missing, or of another kind, is refused or does no harm.
TEST(ReplaySimTest, WhatIsNoRecordingIsRefused) {
  const Json good = Json::parse(Train(kCases[0], ConfigOf(kCases[0])).recording);
  std::vector<std::string> paths;
  const Json flat = good.flatten();
  for (const auto& [path, value] : flat.items()) paths.push_back(path);
  int refused = 0;
  for (const std::string& path : paths) {
    for (const Json& other : {Json(), Json(-2), Json("x"), Json(1e300), Json::array()}) {
      Json bad = good;
      bad[Json::json_pointer(path)] = other;
      refused += ReadRecording(bad).ok() ? 0 : 1;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_FALSE(ReadRecording(Json::object()).ok());
}

}  // namespace
}  // namespace sluice
