// Training on many ranks in virtual time: the same every time, near its floor, and the same whether
// one host stands for all or all are there. Times are virtual.

#include <gtest/gtest.h>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/sim/scale_cases.h"

namespace sluice {
namespace {

// Eight GPUs a host; a model that is small in bytes, not in layers.
ScaleCase Small(int stage, Tier states, Tier params, uint32_t hosts = 1) {
  return {.machine = *FindMachine("h100"),
          .hosts = hosts,
          .stage = stage,
          .states = states,
          .params = params,
          .parameters = 7e9,
          .units = 16,
          .tokens = 8192,
          .cells_of_shard = states == Tier::kNvme ? 12 : 2,
          .cache_units = 4};
}

std::string NameOf(const ScaleCase& c) {
  return fmt::format("{} hosts, stage {}, states on tier {}, parameters on {}", c.hosts, c.stage,
                     static_cast<int>(c.states), static_cast<int>(c.params));
}

ScaleResult RunCase(const ScaleCase& c) {
  absl::StatusOr<ScaleResult> result = Simulate(c);
  SLUICE_CHECK_MSG(result.ok(), Message(result.status()));
  return *std::move(result);
}

TEST(ScaleSimTest, TheSameEveryTime) {
  for (const int stage : {0, 3}) {
    ScaleCase c = Small(stage, Tier::kNvme, stage == 3 ? Tier::kNvme : Tier::kHbm);
    c.cells_of_shard = 2;
    const ScaleResult first = RunCase(c), second = RunCase(c);
    EXPECT_EQ(first.training.digest, second.training.digest) << NameOf(c);
    for (size_t r = 0; r < 8; ++r)
      EXPECT_EQ(first.training.times[r].steps, second.training.times[r].steps) << NameOf(c);
    ScaleCase faster = c;
    faster.tokens *= 0.9;
    EXPECT_NE(first.training.digest, RunCase(faster).training.digest) << NameOf(c);
  }
}

// The floor is what no schedule is below, and the real one is near it.
TEST(ScaleSimTest, StepsAreNearTheFloor) {
  for (const uint32_t hosts : {1u, 64u}) {
    for (const ScaleCase& c :
         {Small(0, Tier::kHbm, Tier::kHbm, hosts), Small(1, Tier::kHbm, Tier::kHbm, hosts),
          Small(2, Tier::kPinned, Tier::kHbm, hosts), Small(3, Tier::kPinned, Tier::kPinned, hosts),
          Small(3, Tier::kNvme, Tier::kNvme, hosts)}) {
      // One of them is enough, and one that uses everything; at stage 0 each rank updates all.
      if (hosts > 1 && !(c.stage == 1 || c.params == Tier::kNvme)) continue;
      ScaleCase run = c;
      if (hosts > 1) run.cells_of_shard = c.states == Tier::kNvme ? 2 : 1;
      const double ratio = RunCase(run).ratio();
      EXPECT_LE(ratio, 1.05) << NameOf(c);
      EXPECT_GE(ratio, 0.99) << NameOf(c);
    }
  }
}

TEST(ScaleSimTest, WithoutOverlapTheyAreNot) {
  ScaleCase c = Small(2, Tier::kPinned, Tier::kHbm);
  c.tokens = 2048;
  const double with = RunCase(c).step;
  c.overlap = false;
  EXPECT_GT(RunCase(c).step / with, 1.1) << "an update is what forward can hide";
  c = Small(1, Tier::kNvme, Tier::kHbm);
  c.tokens = 32768;
  c.overlap = false;
  EXPECT_GT(RunCase(c).ratio(), 1.3) << "or the drives";
}

// What each rank sends is the formula's: gradients and parameters, or parameters twice.
TEST(ScaleSimTest, SendsWhatTheStageSays) {
  for (const int stage : {0, 1, 2, 3}) {
    ScaleCase c = Small(stage, Tier::kHbm, Tier::kHbm);
    c.cache_units = 1;
    const double expected = (stage == 3 ? 3 : 2) * 2 * c.parameters * 7 / 8;
    EXPECT_NEAR(1, static_cast<double>(RunCase(c).sent.value()) / expected,
                stage == 3 ? 0.08 : 0.01)
        << "stage " << stage;
  }
}

TEST(ScaleSimTest, OneHostStandsForAll) {
  for (const int stage : {1, 3}) {
    ScaleCase c = Small(stage, Tier::kPinned, stage == 3 ? Tier::kPinned : Tier::kHbm, 3);
    c.cells_of_shard = 1;
    c.tokens = 2048;  // the network is most of it
    const double mirrored = RunCase(c).step;
    c.mirrored = false;
    EXPECT_NEAR(1, RunCase(c).step / mirrored, 0.02) << NameOf(c);
  }
}

}  // namespace
}  // namespace sluice
