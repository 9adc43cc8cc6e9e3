// The figures of times in a report, against what virtual time makes certain.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/sim/sim_factory.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using Json = nlohmann::json;
using ::sluice::testing::Trainer;
using ::sluice::testing::TrainerOptions;

constexpr int64_t kUnits = 6;
constexpr int64_t kChunkElements = 2 * kCellElements;
constexpr Nanos kLatency = std::chrono::milliseconds(2);

ModelSpec Model() {
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u)});
    spec.tensors.push_back({.name = fmt::format("unit{}.weight", u),
                            .unit = UnitIndex(u),
                            .elements = 4 * kChunkElements});
  }
  return spec;
}

// Two units fit in HBM, and all but gradients and buffers lives on two drives.
SimRuntime MakeSim(Nanos latency) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.device = DeviceKind::kHost;
  config.workers = 2;
  config.chunk_elements = kChunkElements;
  config.placement.resident_elements_max = 0;
  config.placement.state_buffers = 4;
  config.placement.param_buffers = 4;
  const Bytes unit(2 * 4 * kChunkElements);
  config.budgets.hbm = 2 * unit;
  config.budgets.pinned = kUnits * unit + 4 * Bytes(12 * kChunkElements) + 4 * unit;
  config.budgets.nvme = GiB(4);
  config.nvme_paths = {"/drive0", "/drive1"};
  auto sim = MakeSimRuntime(Model(), config, {.seed = 3, .io_latency = latency});
  SLUICE_CHECK_MSG(sim.ok(), sim.status().ToString());
  return *std::move(sim);
}

Json ReportOf(const SimRuntime& sim) { return Json::parse(sim.runtime->ReportJson()); }

TEST(FiguresSimTest, EveryTransferAcquisitionAndChunkIsInAHistogram) {
  const SimRuntime sim = MakeSim(kLatency);
  Trainer trainer(sim.runtime.get(), Model(), TrainerOptions{.steps = 3});
  ASSERT_TRUE(trainer.Run().ok());
  const Json report = ReportOf(sim);
  const Json& counters = report["counters"];
  const Json& times = report["histograms_ns"];
  EXPECT_EQ(times["read"]["count"], counters["nvme_reads"]);
  EXPECT_EQ(times["write"]["count"], counters["nvme_writes"]);
  EXPECT_EQ(times["acquire"]["count"], counters["acquires"]);
  EXPECT_EQ(times["update_chunk"]["count"], counters["chunks_updated"]);
  EXPECT_EQ(counters["chunks_updated"], 3 * kUnits * 4);
  int64_t reads = 0;
  int64_t waits = 0;
  ASSERT_EQ(report["drives"].size(), 2);
  for (const Json& drive : report["drives"]) {
    EXPECT_EQ(drive["read_ns"]["count"], drive["reads"]);
    EXPECT_EQ(drive["write_ns"]["count"], drive["writes"]);
    EXPECT_GT(drive["reads"], 0);
    reads += drive["read_ns"]["count"].get<int64_t>();
    waits += drive["queue_wait_ns"]["count"].get<int64_t>();
  }
  EXPECT_EQ(times["read"]["count"], reads);
  EXPECT_EQ(times["queue_wait"]["count"], waits);
  EXPECT_EQ(waits, counters["nvme_reads"].get<int64_t>() + counters["nvme_writes"].get<int64_t>());
  // Each transfer takes as long as the other, and a unit that must come takes at least one.
  for (const char* kind : {"read", "write"}) {
    EXPECT_NEAR(times[kind]["p50"].get<double>(), kLatency.count(), kLatency.count() / 32.0);
    EXPECT_NEAR(times[kind]["max"].get<double>(), kLatency.count(), kLatency.count() / 32.0);
  }
  EXPECT_GE(times["acquire"]["max"], kLatency.count());
  for (const auto& [name, of] : times.items()) {
    EXPECT_LE(of["p50"], of["p99"]) << name;
    EXPECT_LE(of["p99"], of["max"]) << name;
  }
}

// The caller computes in no time, so in virtual time all that passes between its first acquisition
// and its last step is waited for, by acquisitions, steps, and gradients that it waits for itself.
TEST(FiguresSimTest, WhatIsWaitedForIsWhatTakesTheTime) {
  for (const Nanos latency : {Nanos(1000), Nanos(std::chrono::milliseconds(50))}) {
    SCOPED_TRACE(latency.count());
    const SimRuntime sim = MakeSim(latency);
    Trainer trainer(sim.runtime.get(), Model(), TrainerOptions{.steps = 4});
    ASSERT_TRUE(trainer.Run().ok());
    const Json waited = ReportOf(sim)["waited_for"];
    double all = 0;
    for (const auto& [name, seconds] : waited["seconds"].items()) {
      all += seconds.get<double>();
      EXPECT_DOUBLE_EQ(waited["share"][name].get<double>() * waited["of_seconds"].get<double>(),
                       seconds.get<double>());
    }
    EXPECT_LE(all, waited["of_seconds"]);
    const double drive = waited["share"]["drive"];
    if (latency > std::chrono::milliseconds(1)) {
      EXPECT_GT(drive, 0.9);
      EXPECT_THAT(waited["words"].get<std::string>(), ::testing::HasSubstr(" s for the drives ("));
    } else {
      EXPECT_LT(drive, 0.5);
    }
  }
}

TEST(FiguresSimTest, StepsAreTimedAgainstTheFloorOfTheRatesThatWereSet) {
  const SimRuntime sim = MakeSim(kLatency);
  Trainer trainer(sim.runtime.get(), Model(), TrainerOptions{.steps = 4});
  Json steps = ReportOf(sim)["steps"];
  EXPECT_EQ(steps["count"], 0);
  EXPECT_TRUE(steps["seconds"]["p50"].is_null());
  EXPECT_TRUE(steps["efficiency"].is_null());
  for (const auto& [name, term] : steps["floor_seconds"].items()) EXPECT_TRUE(term.is_null());
  const HardwareRates rates{.forward_seconds = 0.25, .backward_seconds = 0.5};
  sim.runtime->SetRates(rates);
  ASSERT_TRUE(trainer.Run().ok());
  steps = ReportOf(sim)["steps"];
  EXPECT_EQ(steps["count"], 3);
  ASSERT_EQ(steps["latest_seconds"].size(), 3);
  ASSERT_EQ(steps["latest_efficiencies"].size(), 3);
  EXPECT_EQ(steps["rates"]["backward_seconds"], 0.5);
  EXPECT_DOUBLE_EQ(steps["floor_seconds"]["total"], 0.75);
  std::vector<double> seconds = steps["latest_seconds"];
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_GT(seconds[i], 0);
    EXPECT_DOUBLE_EQ(steps["latest_efficiencies"][i], 0.75 / seconds[i]);
  }
  std::ranges::sort(seconds);
  EXPECT_EQ(steps["seconds"]["p50"], seconds[1]);
  EXPECT_EQ(steps["seconds"]["max"], seconds[2]);
  EXPECT_DOUBLE_EQ(steps["efficiency"], 0.75 / seconds[1]);
}

TEST(FiguresSimTest, ResettingEmptiesEveryHistogram) {
  const SimRuntime sim = MakeSim(kLatency);
  Trainer trainer(sim.runtime.get(), Model(), TrainerOptions{.steps = 2});
  ASSERT_TRUE(trainer.Run().ok());
  sim.runtime->ResetCounters();
  const Json report = ReportOf(sim);
  const Json empty = {{"count", 0}, {"p50", 0}, {"p99", 0}, {"max", 0}};
  for (const auto& [name, times] : report["histograms_ns"].items()) EXPECT_EQ(times, empty) << name;
  for (const Json& drive : report["drives"]) {
    for (const char* name : {"queue_wait_ns", "read_ns", "write_ns"})
      EXPECT_EQ(drive[name], empty) << name;
  }
}

}  // namespace
}  // namespace sluice
