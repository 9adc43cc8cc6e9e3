// What goes wrong in any seam of a simulated runtime ends in the right bytes or a clear error, in
// bounded time, and everything comes back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using ::testing::AnyOf;
using testing::ConfigOf;
using testing::Drawn;
using testing::DrawnFrom;
using ::testing::HasSubstr;
using testing::Masters;
using testing::OddModel;
using testing::Outcome;
using testing::SameBits;
using testing::Simulate;
using testing::SmallestBudgets;
using testing::TrainerOptions;

// Three units of different types, the largest of three chunks, and one of bytes, in the smallest
// budgets: everything streams.
ModelSpec SmallModel() {
  ModelSpec spec;
  const std::vector<std::vector<int64_t>> sizes = {{5003}, {9001, 7}, {4096, 65}, {5001, 3}};
  const std::optional<UnitTypes> types[] = {
      std::nullopt, UnitTypes{.param = FloatType::kF32, .grad = FloatType::kBf16},
      UnitTypes{.param = FloatType::kF16, .grad = FloatType::kF32},
      UnitTypes{.param = ElementType::Bytes()}};
  for (uint32_t u = 0; u < sizes.size(); ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u), .types = types[u]});
    for (size_t t = 0; t < sizes[u].size(); ++t) {
      spec.tensors.push_back({.name = fmt::format("unit{}.{}", u, t),
                              .unit = UnitIndex(u),
                              .elements = sizes[u][t],
                              .group = static_cast<uint32_t>(t % 2),
                              .keep = u == 3 ? Keep::kParam : Keep::kAll});
    }
  }
  return spec;
}

RuntimeConfig SmallConfig() {
  RuntimeConfig config;
  config.types.param = FloatType::kBf16;
  config.types.grad = FloatType::kBf16;
  config.placement.resident_elements_max = 100;
  config.chunk_elements = kCellElements;
  config.nvme_paths = {"simulated", "also simulated"};
  config.workers = 2;
  config.budgets = SmallestBudgets(SmallModel(), config);
  return config;
}

const TrainerOptions kTraining{.steps = 2, .micro_steps = 2};

// Right bytes, or an error that says what and where; nothing left behind.
void ExpectRightOrClear(const Outcome& outcome, const Masters& expected) {
  EXPECT_EQ(outcome.unsettled, "");
  if (outcome.status.ok()) {
    EXPECT_TRUE(SameBits(outcome.masters, expected)) << "wrong values, and no error";
    return;
  }
  EXPECT_FALSE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
  EXPECT_FALSE(absl::IsInvalidArgument(outcome.status)) << outcome.status;
  EXPECT_THAT(std::string(Message(outcome.status)),
              AnyOf(HasSubstr("unit '"), HasSubstr("has used a unit"), HasSubstr("tensor '"),
                    HasSubstr("simulat")));
}

struct Walk {
  SimSeam seam;
  SimFault fault;
  const char* name;
  bool streams = false;  // the caller computes on a stream of its own
};

class SimWalkTest : public ::testing::TestWithParam<Walk> {};

INSTANTIATE_TEST_SUITE_P(
    All, SimWalkTest,
    ::testing::Values(Walk{SimSeam::kRead, SimFault::kError, "ReadFails"},
                      Walk{SimSeam::kRead, SimFault::kRefused, "ReadIsRefused"},
                      Walk{SimSeam::kRead, SimFault::kShort, "ReadIsShort"},
                      Walk{SimSeam::kRead, SimFault::kCorrupt, "ReadIsCorrupt"},
                      Walk{SimSeam::kRead, SimFault::kLost, "ReadIsLost"},
                      Walk{SimSeam::kRead, SimFault::kLate, "ReadIsLate"},
                      Walk{SimSeam::kWrite, SimFault::kError, "WriteFails"},
                      Walk{SimSeam::kWrite, SimFault::kRefused, "WriteIsRefused"},
                      Walk{SimSeam::kWrite, SimFault::kShort, "WriteIsShort"},
                      Walk{SimSeam::kWrite, SimFault::kCorrupt, "WriteIsCorrupt"},
                      Walk{SimSeam::kWrite, SimFault::kLost, "WriteIsLost"},
                      Walk{SimSeam::kWrite, SimFault::kLate, "WriteIsLate"},
                      Walk{SimSeam::kCopy, SimFault::kError, "CopyFails"},
                      Walk{SimSeam::kCopy, SimFault::kLate, "CopyIsLate"},
                      Walk{SimSeam::kTask, SimFault::kLate, "TaskIsLate"},
                      Walk{SimSeam::kCopy, SimFault::kError, "CopyBesideAStreamFails", true},
                      Walk{SimSeam::kRead, SimFault::kError, "ReadBesideAStreamFails", true},
                      Walk{SimSeam::kFence, SimFault::kRefused, "FenceIsRefused", true},
                      Walk{SimSeam::kFence, SimFault::kLate, "FenceIsLate", true},
                      Walk{SimSeam::kOrder, SimFault::kRefused, "OrderIsRefused", true},
                      Walk{SimSeam::kMemory, SimFault::kRefused, "NoMemory"},
                      Walk{SimSeam::kFile, SimFault::kRefused, "NoFile"}),
    [](const ::testing::TestParamInfo<Walk>& info) { return std::string(info.param.name); });

// The n-th call of a seam fails, for every n until nothing fails any more.
TEST_P(SimWalkTest, EveryCallMayFailOnceOrFromThenOn) {
  const Walk walk = GetParam();
  const Masters expected = TrainReference(SmallModel(), kTraining);
  const RuntimeConfig config = SmallConfig();
  for (const SimFaults::Repeat repeat : {SimFaults::Repeat::kOnce, SimFaults::Repeat::kAlways}) {
    uint64_t n = 0;
    for (bool failed = true; failed;) {
      ++n;
      SCOPED_TRACE(fmt::format(
          "call {}, {}", n, repeat == SimFaults::Repeat::kOnce ? "once" : "and all that follow"));
      testing::SimCaller caller;
      const auto faults = [&](SimFaults* f) { f->Script(walk.seam, walk.fault, n, repeat); };
      const Outcome outcome = Simulate(SmallModel(), config, {.seed = n, .faults = faults},
                                       kTraining, walk.streams ? &caller : nullptr);
      failed = outcome.faults > 0;
      ExpectRightOrClear(outcome, expected);
      if (!failed) {
        EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      }
      if (walk.fault == SimFault::kLate || walk.seam == SimSeam::kOrder) {
        EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      }
      if (HasFailure()) return;
    }
    EXPECT_GT(n, 1u) << "nothing ever failed";
    RecordProperty(repeat == SimFaults::Repeat::kOnce ? "calls_once" : "calls_always",
                   static_cast<int>(n));
  }
}

// Faults of every kind, drawn from the seed; from rare to so many that loading fails.
TEST(SimFaultsTest, WhateverGoesWrongEndsWellOrClearly) {
  int exact = 0;
  int failed = 0;
  int exact_in_spite = 0;
  for (const uint64_t seed : Seeds(300)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    const auto faults = [seed](SimFaults* f) {
      SimWorld dice(seed);
      const uint64_t rare = 1 + dice.Uniform(1, 12) * dice.Uniform(1, 100);
      for (int i = 0; i < 3; ++i) {
        const auto seam = static_cast<SimSeam>(dice.Uniform(0, 3));
        const auto fault = static_cast<SimFault>(dice.Uniform(1, 6));  // all but those that hang
        f->Draw(seam, fault, rare);
      }
    };
    const Drawn drawn = DrawnFrom(seed);
    testing::SimCaller caller;
    const Outcome outcome = Simulate(drawn.spec, drawn.config, {.seed = seed, .faults = faults},
                                     Ahead(seed, kTraining), CallerOf(seed, &caller));
    ExpectRightOrClear(outcome, TrainReference(drawn.spec, kTraining));
    if (outcome.faults == 0) {
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    }
    (outcome.status.ok() ? exact : failed) += 1;
    exact_in_spite += outcome.status.ok() && outcome.faults > 0 ? 1 : 0;
  }
  EXPECT_GT(exact, 30);
  EXPECT_GT(failed, 30);
  EXPECT_GT(exact_in_spite, 10);
}

TEST(SimFaultsTest, TheSameSeedGivesTheSameLogWithFaultsToo) {
  for (const uint64_t seed : Seeds(10)) {
    const auto faults = [](SimFaults* f) {
      f->Draw(SimSeam::kRead, SimFault::kLate, 20);
      f->Draw(SimSeam::kWrite, SimFault::kCorrupt, 100);
      f->Draw(SimSeam::kCopy, SimFault::kLate, 30);
    };
    const SimOptions options{.seed = seed, .faults = faults};
    const Outcome first = Simulate(OddModel(), ConfigOf(seed), options, kTraining);
    const Outcome second = Simulate(OddModel(), ConfigOf(seed), options, kTraining);
    ASSERT_EQ(first.log, second.log) << "seed " << seed;
    ASSERT_EQ(first.status, second.status) << "seed " << seed;
  }
}

// A drive or a device that never answers: the ticket stays open, which the caller can see, nothing
// wrong is said, and the runtime can still be destroyed.
TEST(SimFaultsTest, WhatNeverEndsLeavesTheTicketOpenAndNothingElse) {
  const RuntimeConfig config = SmallConfig();
  for (const SimSeam seam : {SimSeam::kRead, SimSeam::kWrite, SimSeam::kCopy}) {
    for (uint64_t n = 1; n <= 40; n += 3) {
      const Outcome outcome =
          Simulate(SmallModel(), config,
                   {.seed = n,
                    .faults =
                        [&](SimFaults* f) {
                          f->Script(seam, SimFault::kSilent, n, SimFaults::Repeat::kOnce);
                        }},
                   kTraining);
      ASSERT_EQ(outcome.faults, 1u);
      EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
      EXPECT_NE(outcome.unsettled, "");
    }
  }
}

}  // namespace
}  // namespace sluice
