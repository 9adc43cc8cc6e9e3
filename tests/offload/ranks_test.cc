// Several ranks in one process, each a runtime with threads of its own: the same training at every
// stage, with everything anywhere, comes to the bits of plain arrays.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using testing::InMemory;
using testing::RankResult;
using testing::RanksCase;
using testing::TrainerOptions;

void TrainAndCompare(const RanksCase& c) {
  TrainerOptions all = c.training;
  all.ranks = c.ranks;
  const auto expected = testing::TrainReference(c.spec, all);
  const std::vector<RankResult> results = testing::Train(c);
  for (uint32_t r = 0; r < c.ranks; ++r) {
    ASSERT_TRUE(results[r].status.ok()) << "rank " << r << ": " << results[r].status;
    EXPECT_EQ(results[0].norm, results[r].norm);
    for (uint32_t t = 0; t < expected.size(); ++t)
      ASSERT_EQ(expected[t], results[r].master[t]) << "rank " << r << ", tensor " << t;
  }
}

enum class Where { kAllInHbm, kStatesOnNvme };

class RanksTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, Where>> {};

TEST_P(RanksTest, ComeToTheBitsOfPlainArrays) {
  const auto [ranks, stage, where] = GetParam();
  TempDir directory;
  RanksCase c = InMemory(ranks, stage);
  if (where == Where::kStatesOnNvme) {
    c.config.nvme_paths = {directory.path()};
    c.config.budgets.pinned = MiB(1);
    c.config.placement.state_buffers = 4;
  }
  c.training.micro_steps = 2;
  TrainAndCompare(c);
}

// Ranks that skip units, or run them twice, each in its own way and otherwise in every step; types,
// frozen tensors and homes of all kinds.
RanksCase RandomCase(uint64_t seed, const std::string& directory) {
  uint64_t dice = testing::Mix(seed + 1000);
  const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
  RanksCase c{.spec = testing::MixedModel(seed),
              .ranks = 2 + static_cast<uint32_t>(draw(3)),
              .stage = static_cast<int>(draw(3))};
  c.config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  c.config.chunk_elements = kCellElements * static_cast<int64_t>(1 + draw(3));
  c.config.workers = 1 + static_cast<int>(draw(2));
  c.config.placement.resident_elements_max = 100;
  c.config.placement.lowest_param_tier = Tier::kHbm;
  c.config.placement.state_buffers = c.config.placement.grad_buffers = 4;
  c.config.nvme_paths = {directory};
  c.config.budgets = {MiB(1), draw(2) == 0 ? MiB(16) : KiB(1000), GiB(1)};
  c.training.steps = 3;
  c.training.micro_steps = 1 + static_cast<int>(draw(2));
  if (draw(3) == 0) return c;
  c.training.rank_order = [seed](uint32_t rank, int step, size_t units) {
    uint64_t own = testing::Mix(seed * 97 + rank * 31 + static_cast<uint64_t>(step));
    std::vector<uint32_t> order;
    for (uint32_t u = 0; u < units; ++u) {
      own = testing::Mix(own + 1);
      if (own % 3 != 0) order.push_back(u);
      if (own % 7 == 0) order.push_back(u);
    }
    return order;
  };
  return c;
}

class RandomRanksTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(RandomRanksTest, ComeToTheBitsOfPlainArrays) {
  TempDir directory;
  TrainAndCompare(RandomCase(GetParam(), directory.path()));
}

INSTANTIATE_TEST_SUITE_P(All, RandomRanksTest, ::testing::Range<uint64_t>(1, 41));

INSTANTIATE_TEST_SUITE_P(
    All, RanksTest,
    ::testing::Combine(::testing::Values(1, 2, 3, 4), ::testing::Values(0, 1, 2),
                       ::testing::Values(Where::kAllInHbm, Where::kStatesOnNvme)));

}  // namespace
}  // namespace sluice
