// Chunks of several pieces that are checked, updated and sealed in one pass: tensors that end
// within stripes and pieces, wherever the parameters go, are exact, and every changed byte is
// found. In simulation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
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

// Where the parts of one chunk are, and in how many rounds its update then goes: what was read
// whole is checked first; parameters that others see, or that are written to a drive, come last.
struct Homes {
  const char* name;
  Tier states, grads, params;
  bool lent;
  int rounds;
};
constexpr Homes kHomes[] = {
    {"all in RAM", Tier::kPinned, Tier::kPinned, Tier::kPinned, false, 1},
    {"parameters in HBM", Tier::kPinned, Tier::kPinned, Tier::kHbm, false, 1},
    {"parameters on a drive", Tier::kPinned, Tier::kPinned, Tier::kNvme, false, 2},
    {"gradients on a drive", Tier::kPinned, Tier::kNvme, Tier::kPinned, false, 2},
    {"gradients and parameters on a drive", Tier::kPinned, Tier::kNvme, Tier::kNvme, false, 3},
    {"states on a drive", Tier::kNvme, Tier::kPinned, Tier::kPinned, false, 2},
    {"states on a drive, parameters in HBM", Tier::kNvme, Tier::kPinned, Tier::kHbm, false, 1},
    {"all on a drive", Tier::kNvme, Tier::kNvme, Tier::kNvme, false, 3},
    {"lent", Tier::kPinned, Tier::kPinned, Tier::kHbm, true, 1},
    {"lent, gradients on a drive", Tier::kPinned, Tier::kNvme, Tier::kHbm, true, 2},
    {"lent, states on a drive", Tier::kNvme, Tier::kPinned, Tier::kHbm, true, 2},
    {"lent, all on a drive", Tier::kNvme, Tier::kNvme, Tier::kHbm, true, 2},
};
constexpr int kParts = 5;

// A runtime of one chunk of five parts, whose gradient has come. Of what is read from then on, and
// ahead, the n-th read is changed, if n is not 0.
struct OneChunk {
  OneChunk(const Homes& homes, uint64_t seed, int changed) : lent(homes.lent) {
    spec.units.push_back({.name = "u"});
    spec.tensors.push_back({.name = "t",
                            .unit = UnitIndex(0),
                            .elements = kParts * 2 * kPieceElements - 777,
                            .keep = lent ? Keep::kStates : Keep::kAll});
    RuntimeConfig config;
    config.types = {.param = FloatType::kF32, .grad = FloatType::kF32};
    config.chunk_elements = kParts * 2 * kPieceElements;
    config.budgets = {GiB(1), GiB(1), GiB(1)};
    config.nvme_paths = {"simulated"};
    config.workers = 3;
    const auto place = [&homes](const ModelLayout&, Placement* p) {
      p->state_home = {homes.states};
      p->grad_home = {homes.grads};
      p->param_home = {homes.params};
      p->hbm_cache = homes.params == Tier::kHbm ? Bytes(0) : p->slot_bytes[0];
      p->state_buffers = p->param_buffers = p->grad_buffers = 2;
      p->task_elements = 2 * kPieceElements;
    };
    sim = *MakeSimRuntime(spec, config, {.seed = seed, .place = place});
    trainer.emplace(sim.runtime.get(), spec, TrainerOptions{});
    params = testing::InitialValues(0, spec.tensors[0].elements);
    grads = testing::InitialValues(1, spec.tensors[0].elements);
    SLUICE_CHECK(trainer->Load().ok());
    if (changed > 0)
      sim.world->faults()->Script(SimSeam::kRead, SimFault::kCorrupt,
                                  static_cast<uint64_t>(changed), SimFaults::Repeat::kOnce);
    sim.runtime->BeginIteration(1, true);
    SLUICE_CHECK(
        trainer->Wait(sim.runtime->PushGrad(TensorIndex(0), std::as_bytes(std::span(grads)))).ok());
    sim.runtime->EndIteration();
    const TimePoint end = sim.world->Now() + std::chrono::seconds(1);
    while (sim.world->Now() < end) sim.runtime->RunOnce(end);
  }
  absl::Status Step() {
    StepRequest request{.groups = testing::Groups(), .lent = {}, .clip_norm = 0.0};
    if (lent) request.lent = {{reinterpret_cast<std::byte*>(params.data()), FloatType::kF32}};
    const absl::Status status = trainer->Wait(sim.runtime->Step(std::move(request)));
    const absl::Status drained = trainer->Wait(sim.runtime->Drain());
    return status.ok() ? drained : status;
  }

  const bool lent;
  ModelSpec spec;
  SimRuntime sim;
  std::optional<testing::Trainer> trainer;
  std::vector<float> params, grads;
};

TEST(PiecesSimTest, EveryRoundOfAChunkIsCutIntoTasks) {
  for (const Homes& homes : kHomes) {
    SCOPED_TRACE(homes.name);
    OneChunk one(homes, 3, 0);
    const uint64_t before = one.sim.world->faults()->calls(SimSeam::kTask);
    ASSERT_TRUE(one.Step().ok());
    // Who ends a round does a part of the next at once.
    EXPECT_EQ(one.sim.world->faults()->calls(SimSeam::kTask) - before,
              static_cast<uint64_t>(homes.rounds * (kParts - 1) + 1));
  }
}

// Wherever in the chunk it is: and nothing was written of what the caller lent.
TEST(PiecesSimTest, AChangedBitIsFoundBeforeAnythingLeavesTheChunk) {
  for (const Homes& homes : kHomes) {
    SCOPED_TRACE(homes.name);
    const int reads = (homes.states == Tier::kNvme ? 1 : 0) + (homes.grads == Tier::kNvme ? 1 : 0);
    for (int read = 1; read <= reads; ++read) {
      for (const uint64_t seed : Seeds(12)) {
        SCOPED_TRACE(seed);
        OneChunk one(homes, seed, read);
        const std::vector<float> params = one.params;
        const absl::Status status = one.Step();
        EXPECT_TRUE(absl::IsDataLoss(status)) << status;
        EXPECT_EQ(one.params, params);
        EXPECT_EQ(one.sim.runtime->tensor_unwritten(TensorIndex(0)), one.spec.tensors[0].elements);
        EXPECT_EQ(testing::Settle(&one.sim), "");
      }
    }
  }
}

}  // namespace
}  // namespace sluice
