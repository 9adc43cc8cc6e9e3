// Several ranks in one process, each a runtime with threads of its own: the same training at every
// stage, with everything anywhere, comes to the bits of plain arrays.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"
#include "tests/offload/smallest_budget.h"

namespace sluice {
namespace {

using testing::InMemory;
using testing::RankResult;
using testing::RanksCase;
using testing::TrainerOptions;
using testing::Where;

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

class RanksTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, Where, bool>> {};

TEST_P(RanksTest, ComeToTheBitsOfPlainArrays) {
  const auto [ranks, stage, where, behind_link] = GetParam();
  TempDir directory;
  RanksCase c = testing::CaseAt(ranks, stage, where, directory.path());
  c.behind_link = behind_link;
  TrainAndCompare(c);
}

// Ranks that skip units, or run them twice, each in its own way and otherwise in every step; types,
// frozen tensors and homes of all kinds.
RanksCase RandomCase(uint64_t seed, const std::string& directory) {
  uint64_t dice = testing::Mix(seed + 1000);
  const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
  RanksCase c{.spec = testing::MixedModel(seed),
              .ranks = 2 + static_cast<uint32_t>(draw(3)),
              .stage = static_cast<int>(draw(4))};
  c.config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  c.config.chunk_elements = kCellElements * static_cast<int64_t>(1 + draw(3));
  c.config.workers = 1 + static_cast<int>(draw(2));
  c.config.placement.resident_elements_max = 100;
  c.config.placement.lowest_param_tier = Tier::kHbm;
  c.config.placement.state_buffers = c.config.placement.grad_buffers = 4;
  c.config.nvme_paths = {directory};
  c.config.budgets = {MiB(1), draw(2) == 0 ? MiB(16) : KiB(1000), GiB(1)};
  if (c.stage == 3) {
    c.config.budgets.hbm = KiB(250 + 50 * static_cast<int64_t>(draw(5)));
    c.config.placement.lowest_param_tier = static_cast<Tier>(draw(3));
  }
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
  RanksCase c = RandomCase(GetParam(), directory.path());
  c.behind_link = GetParam() % 2 == 1;
  TrainAndCompare(c);
}

INSTANTIATE_TEST_SUITE_P(All, RandomRanksTest, ::testing::Range<uint64_t>(1, 41));

// Units of two tensors each, `elements` in all.
ModelSpec EvenModel(int64_t units, int64_t* elements) {
  ModelSpec spec;
  constexpr int64_t kElements = 60 * kCellElements;
  for (uint32_t u = 0; u < units; ++u) {
    spec.units.push_back({.name = std::to_string(u)});
    for (int t = 0; t < 2; ++t) {
      spec.tensors.push_back({.name = std::to_string(u) + "." + std::to_string(t),
                              .unit = UnitIndex(u),
                              .elements = kElements,
                              .group = 0});
    }
  }
  *elements = 2 * units * kElements;
  return spec;
}

// The smallest budgets of all ranks, one tier after another.
void TakeSmallest(RanksCase* c) {
  for (Bytes Budgets::*const tier : {&Budgets::hbm, &Budgets::pinned}) {
    Bytes smallest;
    for (uint32_t r = 0; r < c->ranks; ++r) {
      RuntimeConfig config = c->config;
      config.budgets.*tier = Bytes(1);
      config.sharding = {.rank = Rank(r), .ranks = c->ranks, .states = true, .params = true};
      const std::optional<Bytes> named = SmallestNamed(MakePlan(c->spec, config).status());
      ASSERT_TRUE(named.has_value());
      smallest = std::max(smallest, *named);
    }
    c->config.budgets.*tier = smallest;
  }
}

class LateRanksTest : public ::testing::TestWithParam<uint64_t> {};

// Ranks that come to a unit at different times, and hear of that late, each with room for one, of
// shards on NVMe: a shard is there before it is heard who wants the unit, or that nobody does any
// more, and one gather of it has not ended where the next begins.
TEST_P(LateRanksTest, ComeToTheBitsOfPlainArrays) {
  TempDir directory;
  int64_t p = 0;
  RanksCase c{.spec = EvenModel(3, &p), .stage = 3};
  c.config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  c.config.chunk_elements = 8 * kCellElements;
  c.config.workers = 1;
  c.config.placement.state_buffers = c.config.placement.param_buffers =
      c.config.placement.grad_buffers = 2;
  c.config.nvme_paths = {directory.path()};
  c.config.budgets = {MiB(64), MiB(64), GiB(1)};
  TakeSmallest(&c);
  c.training.steps = 6;
  c.hear_after = std::chrono::microseconds(300);
  c.look_after = [seed = GetParam(),
                  asked = std::make_shared<std::atomic<uint64_t>>()](uint32_t rank) {
    const uint64_t dice = testing::Mix(seed * 1000 + rank + 2 * asked->fetch_add(1));
    return std::chrono::microseconds(dice % 4 == 0 ? dice / 4 % 3000 : 0);
  };
  TrainAndCompare(c);
}

INSTANTIATE_TEST_SUITE_P(All, LateRanksTest, ::testing::Range<uint64_t>(1, 4));

// The formulas of docs/zero.md, over a whole training.
TEST(RanksTrafficTest, EachStageSendsItsBytes) {
  int64_t p = 0;
  RanksCase c{.spec = EvenModel(8, &p)};
  c.config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  c.config.workers = 1;
  c.config.placement.lowest_param_tier = Tier::kHbm;
  c.training.steps = 3;
  const std::pair<uint32_t, ReductionMode> kinds[] = {{2, ReductionMode::kOrdered},
                                                      {3, ReductionMode::kOrdered},
                                                      {3, ReductionMode::kLibrary},
                                                      {4, ReductionMode::kOrdered}};
  for (const auto& [ranks, reduction] : kinds) {
    for (c.stage = 0; c.stage <= 3; ++c.stage) {
      c.ranks = ranks;
      c.config.placement.reduction = reduction;
      SCOPED_TRACE(::testing::Message() << c.ranks << " ranks, stage " << c.stage);
      const double once = 2.0 * static_cast<double>(p) * (c.ranks - 1) / c.ranks;
      const int64_t shard = 2 * p / c.ranks, slot = 2 * p / 8;
      c.config.budgets = {Bytes(c.stage == 3 ? shard + slot * 33 / 32 + 65536 : 3 * p), GiB(1),
                          Bytes(0)};
      const int steps = c.training.steps;
      // With room for one unit, the last of forward is still there in backward; and the first is
      // brought for a step that does not come.
      const double gathers = c.stage == 0   ? 0
                             : c.stage == 3 ? (steps * (2 * 8 - 1) + 1) / 8.0
                                            : steps + 1;  // once for the first values
      for (const RankResult& result : testing::Train(c)) {
        ASSERT_TRUE(result.status.ok()) << result.status;
        const double gradients = once * steps * (c.stage == 0 ? 2 : 1);
        EXPECT_NEAR(gradients, static_cast<double>(result.gradients.value()), 0.01 * gradients);
        EXPECT_NEAR(once * gathers, static_cast<double>(result.gathers.value()),
                    0.01 * once * gathers);
      }
    }
  }
}

// P elements in bf16 with fp32 states: the formulas of docs/zero.md, of every rank.
TEST(RanksMemoryTest, EachStageTakesItsBytes) {
  int64_t p = 0;
  const ModelSpec spec = EvenModel(8, &p);
  for (const uint32_t ranks : {1u, 2u, 3u, 4u}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const bool in_hbm : {false, true}) {
        for (uint32_t rank = 0; rank < ranks; ++rank) {
          SCOPED_TRACE(::testing::Message()
                       << ranks << " ranks, stage " << stage << ", rank " << rank);
          RuntimeConfig config;
          config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
          config.placement.lowest_param_tier = Tier::kHbm;
          if (in_hbm) {
            config.placement.lowest_state_tier = Tier::kHbm;
            config.highest_state_tier_on_host = Tier::kHbm;
          }
          config.budgets = {GiB(1), GiB(1), Bytes(0)};
          config.sharding = {
              .rank = Rank(rank), .ranks = ranks, .states = stage >= 1, .params = stage == 3};
          const absl::StatusOr<Plan> plan = MakePlan(spec, config);
          ASSERT_TRUE(plan.ok()) << plan.status();
          const Placement& placed = plan->placement;
          const auto near = [](int64_t expected, Bytes bytes) {
            EXPECT_NEAR(static_cast<double>(expected), static_cast<double>(bytes.value()),
                        0.05 * static_cast<double>(expected));
          };
          near(2 * p / (stage == 3 ? ranks : 1), placed.hbm_fixed);
          near(12 * p / (stage >= 1 ? ranks : 1), placed.states_hbm + placed.states_pinned);
          near(2 * p / (stage >= 1 ? ranks : 1), placed.grads_hbm + placed.grads_pinned);
          EXPECT_EQ(in_hbm, placed.states_pinned == Bytes(0));
          EXPECT_EQ(in_hbm, placed.grads_pinned == Bytes(0));
        }
      }
    }
  }
}

// Parameters that are whole on every rank leave HBM no farther than to pinned memory.
std::vector<std::tuple<uint32_t, int, Where, bool>> EveryCase() {
  std::vector<std::tuple<uint32_t, int, Where, bool>> cases;
  for (uint32_t ranks = 1; ranks <= 4; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const Where where : testing::kEveryWhere) {
        for (const bool behind_link : {false, true}) {
          if (behind_link && ranks != 3) continue;  // nccl_ranks_test has the others
          if (stage == 3 || where < Where::kAllOnNvme)
            cases.emplace_back(ranks, stage, where, behind_link);
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, RanksTest, ::testing::ValuesIn(EveryCase()));

}  // namespace
}  // namespace sluice
