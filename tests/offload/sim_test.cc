// The whole runtime in virtual time: exact for every seed, and the same for the same seed.

#include <gtest/gtest.h>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Drawn;
using testing::DrawnFrom;
using testing::Masters;
using testing::OddModel;
using testing::Outcome;
using testing::SameBits;
using testing::SimCaller;
using testing::SmallestBudgets;
using testing::TrainerOptions;

Outcome Simulate(uint64_t seed, const TrainerOptions& options) {
  const Drawn drawn = DrawnFrom(seed);
  SimCaller caller;
  return testing::Simulate(drawn.spec, drawn.config, {.seed = seed, .hbm_in_place = seed % 4 == 3},
                           Ahead(seed, options), CallerOf(seed, &caller));
}

TEST(SimTest, EverySeedIsExact) {
  const TrainerOptions options{.steps = 3, .micro_steps = 2};
  for (const uint64_t seed : Seeds(100)) {
    const ModelSpec spec = DrawnFrom(seed).spec;
    const auto expected = testing::TrainReference(spec, options);
    const Outcome outcome = Simulate(seed, options);
    ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
    for (size_t t = 0; t < expected.size(); ++t) {
      ASSERT_EQ(0, std::memcmp(expected[t].data(), outcome.masters[t].data(),
                               expected[t].size() * sizeof(float)))
          << "seed " << seed << ", tensor " << spec.tensors[t].name;
    }
  }
}

TEST(SimTest, TheSameSeedGivesTheSameLogByteForByte) {
  const TrainerOptions options{.steps = 2};
  for (const uint64_t seed : Seeds(10)) {
    const Outcome first = Simulate(seed, options);
    const Outcome second = Simulate(seed, options);
    ASSERT_FALSE(first.log.empty());
    ASSERT_EQ(first.log, second.log) << "seed " << seed;
  }
  EXPECT_NE(Simulate(1, options).log, Simulate(2, options).log);
}

// An order drawn from `seed` and the step: units in any order, some of them several times or not at
// all. Each comes in two steps, one after the other, before the next.
std::vector<uint32_t> RandomOrder(uint64_t seed, int step, size_t units) {
  SimWorld dice(seed * 1009 + static_cast<uint64_t>(step / 2));
  std::vector<uint32_t> order;
  for (uint32_t u = 0; u < units; ++u) {
    if (dice.OneIn(4)) continue;
    order.push_back(u);
    if (dice.OneIn(5)) order.push_back(static_cast<uint32_t>(dice.Uniform(0, units - 1)));
  }
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[dice.Uniform(0, i - 1)]);
  return order;
}

void ExpectExact(const Outcome& outcome, const Masters& expected) {
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_TRUE(SameBits(outcome.masters, expected));
  EXPECT_EQ(outcome.unsettled, "");
  EXPECT_EQ(outcome.faults, 0u);
}

TEST(SimTest, RandomTracesStayExact) {
  for (const uint64_t seed : Seeds(60)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    TrainerOptions options{.steps = 6, .micro_steps = static_cast<int>(1 + seed % 2)};
    options.order = [seed](int step, size_t units) { return RandomOrder(seed, step, units); };
    ExpectExact(Simulate(seed, options), TrainReference(DrawnFrom(seed).spec, options));
  }
}

// Down to room for one unit beside those that live in HBM, and two buffers of each kind.
TEST(SimTest, TheSmallestBudgetsAreExact) {
  for (const uint64_t seed : Seeds(60)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    auto [spec, config] = DrawnFrom(seed);
    config.budgets = SmallestBudgets(spec, config);
    TrainerOptions options{.steps = 3, .micro_steps = 2};
    options.order = [seed](int step, size_t units) { return RandomOrder(seed, step, units); };
    SimCaller caller;
    ExpectExact(testing::Simulate(spec, config, {.seed = seed}, Ahead(seed, options),
                                  CallerOf(seed, &caller)),
                TrainReference(spec, options));
    for (Bytes Budgets::*tier : {&Budgets::hbm, &Budgets::pinned}) {
      RuntimeConfig smaller = config;
      smaller.budgets.*tier -= kSlotAlignment;
      EXPECT_TRUE(absl::IsResourceExhausted(MakePlan(spec, smaller).status()));
    }
  }
}

// A drive so slow that what was read ahead of steps that leave it alone arrives in a later one,
// which must update it once. The first unit's states stay in RAM; how much more does, and what is
// read ahead, differs.
TEST(SimTest, WhatArrivesStepsLaterIsUpdatedOnce) {
  const ModelSpec spec = OddModel();
  TrainerOptions options{.steps = 6};
  options.order = [](int step, size_t units) {
    std::vector<uint32_t> order = {0};
    for (uint32_t u = 1; step % 3 == 2 && u < units; ++u) order.push_back(u);
    return order;
  };
  const Masters expected = TrainReference(spec, options);
  for (const uint64_t seed : Seeds(24)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    config.overlap = true;
    config.budgets = SmallestBudgets(spec, config);
    config.budgets.pinned += KiB(100 + 60 * static_cast<int64_t>(seed % 8));
    const Nanos latency = std::chrono::milliseconds(seed % 3 == 0 ? 1 : 1000);
    ExpectExact(testing::Simulate(spec, config, {.seed = seed, .io_latency = latency}, options),
                expected);
  }
}

// Types other than bf16, and a norm that isn't clipped.
TEST(SimTest, EveryTypeIsExact) {
  constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
  for (const uint64_t seed : Seeds(45)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    const TrainerOptions options{.steps = 2,
                                 .micro_steps = 2,
                                 .clip_norm = seed % 2 == 0 ? 1.0 : 0.0,
                                 .param_type = kTypes[seed % 3],
                                 .grad_type = kTypes[seed / 3 % 3]};
    RuntimeConfig config = ConfigOf(seed);
    config.types.param = options.param_type;
    config.types.grad = options.grad_type;
    config.budgets.hbm = config.budgets.hbm * 2;
    config.budgets.pinned = config.budgets.pinned * 2;
    SimCaller caller;
    ExpectExact(testing::Simulate(OddModel(), config, {.seed = seed}, Ahead(seed, options),
                                  CallerOf(seed, &caller)),
                TrainReference(OddModel(), options));
  }
}

}  // namespace
}  // namespace sluice
