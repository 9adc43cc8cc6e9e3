// The whole runtime in virtual time: exact for every seed, the same for the same seed, and a
// planted bug is found.

#include <gtest/gtest.h>

#include "fmt/format.h"
#include "offload/sim_factory.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

struct Outcome {
  absl::Status status;
  std::vector<std::vector<float>> masters;
  std::string log;
  std::map<std::string, int64_t> counters;
};

// Budgets drawn from the seed, from the smallest that works to everything.
RuntimeConfig ConfigOf(uint64_t seed) {
  SimWorld dice(seed ^ 0x5eed);
  RuntimeConfig config;
  config.placement.param_type = FloatType::kBf16;
  config.placement.grad_type = FloatType::kBf16;
  config.placement.resident_elements_max = dice.OneIn(2) ? 100 : 6000;
  config.placement.state_buffers = static_cast<int>(dice.Uniform(2, 12));
  config.placement.param_buffers = static_cast<int>(dice.Uniform(2, 12));
  config.chunk_elements = kCellElements * static_cast<int64_t>(dice.Uniform(1, 3));
  config.budgets.hbm = KiB(static_cast<int64_t>(dice.Uniform(90, 320)));
  config.budgets.pinned = KiB(static_cast<int64_t>(dice.Uniform(640, 2200)));
  config.budgets.nvme = GiB(1);
  config.nvme_paths = {"simulated", "also simulated"};
  config.io.in_flight_max = static_cast<uint32_t>(dice.Uniform(1, 8));
  config.overlap = !dice.OneIn(8);
  return config;
}

Outcome Simulate(uint64_t seed, PlantedBug bug, const TrainerOptions& options) {
  Outcome outcome;
  absl::StatusOr<SimRuntime> sim =
      MakeSimRuntime(OddModel(), ConfigOf(seed), {.seed = seed, .planted_bug = bug});
  if (!sim.ok()) {
    outcome.status = sim.status();
    return outcome;
  }
  Trainer trainer(sim->runtime.get(), OddModel(), options);
  outcome.status = trainer.Run();
  for (uint32_t t = 0; outcome.status.ok() && t < OddModel().tensors.size(); ++t) {
    absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
    outcome.status = master.status();
    if (master.ok()) outcome.masters.push_back(*std::move(master));
  }
  const auto report = sim->runtime->ReportJson();
  outcome.log = sim->world->log() + report;
  return outcome;
}

TEST(SimTest, EverySeedIsExact) {
  const TrainerOptions options{.steps = 3, .micro_steps = 2};
  const auto expected = testing::TrainReference(OddModel(), options);
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const Outcome outcome = Simulate(seed, PlantedBug::kNone, options);
    ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
    for (size_t t = 0; t < expected.size(); ++t) {
      ASSERT_EQ(0, std::memcmp(expected[t].data(), outcome.masters[t].data(),
                               expected[t].size() * sizeof(float)))
          << "seed " << seed << ", tensor " << OddModel().tensors[t].name;
    }
  }
}

TEST(SimTest, TheSameSeedGivesTheSameLogByteForByte) {
  const TrainerOptions options{.steps = 2};
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const Outcome first = Simulate(seed, PlantedBug::kNone, options);
    const Outcome second = Simulate(seed, PlantedBug::kNone, options);
    ASSERT_FALSE(first.log.empty());
    ASSERT_EQ(first.log, second.log) << "seed " << seed;
  }
  EXPECT_NE(Simulate(1, PlantedBug::kNone, options).log,
            Simulate(2, PlantedBug::kNone, options).log);
}

TEST(SimTest, FindsABufferReusedBeforeItsWriteIsDone) {
  const TrainerOptions options{.steps = 3};
  const auto expected = testing::TrainReference(OddModel(), options);
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    const Outcome outcome = Simulate(seed, PlantedBug::kReuseBeforeWritten, options);
    if (!outcome.status.ok() || outcome.masters != expected) {
      RecordProperty("found_at_seed", static_cast<int>(seed));
      fmt::print("found at seed {}: {}\n", seed,
                 outcome.status.ok() ? "wrong bytes" : outcome.status.ToString());
      return;
    }
  }
  FAIL() << "1000 seeds did not find the planted bug";
}

TEST(SimTest, OrdersThatChangeEveryStepStayExact) {
  TrainerOptions options{.steps = 6};
  options.order = [](int step, size_t units) {
    std::vector<uint32_t> order;
    for (uint32_t u = 0; u < units; ++u) order.push_back(u);
    SimWorld dice(static_cast<uint64_t>(step / 2));  // an order comes twice before the next
    for (size_t i = units - 1; i > 0; --i) std::swap(order[i], order[dice.Uniform(0, i)]);
    return order;
  };
  const auto expected = testing::TrainReference(OddModel(), options);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const Outcome outcome = Simulate(seed, PlantedBug::kNone, options);
    ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
    ASSERT_EQ(expected, outcome.masters) << "seed " << seed;
  }
}

}  // namespace
}  // namespace sluice
