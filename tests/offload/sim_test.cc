// The whole runtime in virtual time: exact for every seed, the same for the same seed, and a
// planted bug is found.

#include <gtest/gtest.h>

#include "fmt/format.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::OddModel;
using testing::Outcome;
using testing::TrainerOptions;

Outcome Simulate(uint64_t seed, PlantedBug bug, const TrainerOptions& options) {
  return testing::Simulate(OddModel(), ConfigOf(seed), {.seed = seed, .planted_bug = bug}, options);
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
