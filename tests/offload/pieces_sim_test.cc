// Chunks of several pieces that are checked, updated and sealed in one pass: tensors that end
// within stripes and pieces, wherever the parameters go, are exact, and every changed byte is
// found. In simulation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using ::testing::AllOf;
using testing::ConfigOf;
using ::testing::HasSubstr;
using testing::Outcome;
using testing::TrainerOptions;

// Units of one tensor of several pieces, and of many whose ends fall anywhere; some are frozen.
ModelSpec PiecesModel(uint64_t seed) {
  SimWorld dice(seed);
  ModelSpec spec;
  for (uint32_t u = 0; u < 3; ++u) {
    spec.units.push_back({.name = fmt::format("u{}", u)});
    int64_t left = 3 * kPieceElements + static_cast<int64_t>(dice.Uniform(0, 5000));
    while (left > 0) {
      const int64_t most = u == 0 ? left : std::min<int64_t>(left, 9000);
      const int64_t elements = u == 0 ? left : static_cast<int64_t>(dice.Uniform(1, most));
      spec.tensors.push_back({.name = fmt::format("t{}", spec.tensors.size()),
                              .unit = UnitIndex(u),
                              .elements = elements,
                              .group = static_cast<uint32_t>(spec.tensors.size() % 2),
                              .keep = u == 2 && dice.OneIn(4) ? Keep::kParam : Keep::kAll});
      left -= elements;
    }
  }
  return spec;
}

RuntimeConfig PiecesConfig(const ModelSpec& spec, uint64_t seed) {
  RuntimeConfig config = ConfigOf(seed);
  config.chunk_elements = kCellElements * static_cast<int64_t>(9 + seed % 5);
  config.placement.resident_elements_max = 0;
  config.placement.state_buffers = 2 + static_cast<int>(seed % 3);
  config.placement.param_buffers = 2;
  config.budgets = testing::SmallestBudgets(spec, config);
  if (seed % 3 == 1) config.budgets.hbm = MiB(8);                               // parameters in HBM
  if (seed % 3 == 2) config.budgets.pinned = config.budgets.pinned + KiB(400);  // or in RAM
  return config;
}

const TrainerOptions kOptions{.steps = 3};

TEST(PiecesSimTest, ChunksOfSeveralPiecesAreExactWhereverParametersGo) {
  std::set<Tier> homes;  // of parameters whose states are on drives
  for (const uint64_t seed : Seeds(24)) {
    const ModelSpec spec = PiecesModel(seed);
    const RuntimeConfig config = PiecesConfig(spec, seed);
    const absl::StatusOr<Plan> plan = MakePlan(spec, config);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (size_t c = 0; c < plan->layout.chunks().size(); ++c) {
      const ChunkLayout& chunk = plan->layout.chunks()[c];
      if (chunk.capacity > kPieceElements && plan->placement.state_home[c] == Tier::kNvme)
        homes.insert(plan->placement.param_home[chunk.unit.value()]);
    }
    const Outcome outcome = testing::Simulate(spec, config, {.seed = seed}, kOptions);
    ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
    EXPECT_EQ(outcome.unsettled, "");
    EXPECT_TRUE(testing::SameBits(outcome.masters, testing::TrainReference(spec, kOptions)))
        << "seed " << seed;
  }
  EXPECT_EQ(homes.size(), 3u);
}

TEST(PiecesSimTest, AChangedByteOfAnyPieceIsFound) {
  int found = 0;
  for (const uint64_t seed : Seeds(40)) {
    const ModelSpec spec = PiecesModel(seed);
    const auto faults = [&](SimFaults* f) {
      f->Script(SimSeam::kRead, SimFault::kCorrupt, 1 + seed % 23, SimFaults::Repeat::kOnce);
    };
    const Outcome outcome = testing::Simulate(spec, PiecesConfig(spec, seed),
                                              {.seed = seed, .faults = faults}, kOptions);
    if (outcome.status.ok()) continue;
    ++found;
    EXPECT_THAT(std::string(outcome.status.message()),
                AllOf(HasSubstr("block "), HasSubstr("of generation "), HasSubstr("bytes at "),
                      HasSubstr("the drive returned other bytes than were written")));
  }
  EXPECT_GT(found, 20);
}

}  // namespace
}  // namespace sluice
