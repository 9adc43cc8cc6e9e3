// The sizes in which parameters are copied, states are updated and chunks are transferred, each
// against the others: whatever they are, however many buffers there are, and however slow one drive
// is beside another, a step ends, in the same bits.

#include <gtest/gtest.h>

#include <algorithm>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"
#include "tests/optim/other_states.h"

namespace sluice {
namespace {

using testing::Masters;
using testing::Outcome;
using testing::SameBits;
using testing::TrainerOptions;

// Units of one to thirty chunks, whole and broken, some tensors frozen.
ModelSpec ModelOf(SimWorld* dice, int64_t chunk_elements) {
  ModelSpec spec;
  const auto units = static_cast<uint32_t>(dice->Uniform(1, 4));
  for (uint32_t u = 0; u < units; ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u)});
    const auto tensors = dice->Uniform(1, 3);
    for (uint64_t t = 0; t < tensors; ++t) {
      const auto chunks = static_cast<int64_t>(dice->Uniform(0, 9));
      const auto rest = static_cast<int64_t>(dice->OneIn(2) ? 0 : dice->Uniform(1, 9000));
      spec.tensors.push_back({.name = fmt::format("unit{}.{}", u, t),
                              .unit = UnitIndex(u),
                              .elements = std::max<int64_t>(1, chunks * chunk_elements + rest),
                              .group = static_cast<uint32_t>(t % 2),
                              .keep = t > 0 && dice->OneIn(5) ? Keep::kParam : Keep::kAll});
    }
  }
  return spec;
}

struct Case {
  ModelSpec spec;
  RuntimeConfig config;
  SimOptions sim;
};

// Parameters in HBM for good, or on the drives as all states are; one to four drives, of which
// nobody says how fast they are.
Case CaseOf(uint64_t seed) {
  SimWorld dice(seed ^ 0x9a1);
  Case made;
  RuntimeConfig& config = made.config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.chunk_elements = kCellElements * static_cast<int64_t>(dice.Uniform(1, 3));
  made.spec = ModelOf(&dice, config.chunk_elements);
  if (dice.OneIn(3)) config.format = testing::SplitMasters::Make;
  config.placement.resident_elements_max = 100;
  config.overlap = !dice.OneIn(6);
  const auto drives = dice.Uniform(1, 4);
  for (uint64_t d = 0; d < drives; ++d) {
    config.nvme_paths.push_back(fmt::format("/drive{}", d));
    made.sim.drive_bytes_per_second.push_back(1e7 * static_cast<double>(dice.Uniform(1, 40)));
  }
  config.io.in_flight_max = static_cast<uint32_t>(drives + dice.Uniform(0, 8));
  config.budgets = testing::SmallestBudgets(made.spec, config);
  if (dice.OneIn(2)) config.budgets.hbm = MiB(16);
  made.sim.seed = seed;
  return made;
}

// What it has of buffers, drawn or given: `params` of them, of one chunk to more than a unit.
void SetBuffers(Case* made, SimWorld* dice, int params) {
  const auto states = static_cast<int>(dice->OneIn(2) ? dice->Uniform(2, 4) : dice->Uniform(2, 20));
  const auto chunks = static_cast<int64_t>(dice->OneIn(4) ? 1 : dice->Uniform(2, 30));
  made->sim.place = [=](const ModelLayout&, Placement* p) {
    p->state_buffers = states;
    p->param_buffers = params;
    p->copy_room = p->param_buffer_bytes * chunks;
  };
}

const TrainerOptions kTraining{.steps = 2};

TEST(GrainsSimTest, AnyNumberOfBuffersOfAnySizeEndsInTheSameBits) {
  for (const uint64_t seed : Seeds(60)) {
    Case made = CaseOf(seed);
    SimWorld dice(seed ^ 0x77);
    const Masters expected = TrainReference(made.spec, kTraining);
    for (const int buffers : {2, 3, 4, 5, 7, 10, 24}) {
      SetBuffers(&made, &dice, buffers);
      const Outcome outcome = Simulate(made.spec, made.config, made.sim, kTraining);
      ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
      ASSERT_EQ(outcome.unsettled, "") << "seed " << seed;
      ASSERT_TRUE(SameBits(outcome.masters, expected)) << "seed " << seed;
    }
  }
}

// Lost and late transfers hold up a chunk whose neighbours are computed.
TEST(GrainsSimTest, WhatIsLostOrLateHoldsUpNothingForGood) {
  constexpr struct {
    SimSeam seam;
    SimFault fault;
  } kFaults[] = {{SimSeam::kRead, SimFault::kLost},  {SimSeam::kRead, SimFault::kLate},
                 {SimSeam::kRead, SimFault::kError}, {SimSeam::kWrite, SimFault::kLost},
                 {SimSeam::kWrite, SimFault::kLate}, {SimSeam::kCopy, SimFault::kLate},
                 {SimSeam::kCopy, SimFault::kError}, {SimSeam::kTask, SimFault::kLate}};
  for (const auto& [seam, fault] : kFaults) {
    int failed = 0, went_on = 0;
    for (const uint64_t seed : Seeds(40)) {
      Case made = CaseOf(seed);
      SimWorld dice(seed ^ 0x78);
      SetBuffers(&made, &dice, static_cast<int>(dice.Uniform(2, 8)));
      made.sim.faults = [seam, fault, seed](SimFaults* f) { f->Draw(seam, fault, 5 + seed * 3); };
      const Outcome outcome = Simulate(made.spec, made.config, made.sim, kTraining);
      ASSERT_EQ(outcome.unsettled, "") << "seed " << seed;
      if (outcome.status.ok()) {
        went_on += outcome.faults > 0 ? 1 : 0;
        ASSERT_TRUE(SameBits(outcome.masters, TrainReference(made.spec, kTraining)))
            << "seed " << seed;
      } else {
        ++failed;
        ASSERT_NE(fault, SimFault::kLate) << "seed " << seed << ": " << outcome.status;
        ASSERT_FALSE(absl::IsDeadlineExceeded(outcome.status))
            << "seed " << seed << ": " << outcome.status;
      }
    }
    EXPECT_GT(fault == SimFault::kLate ? went_on : failed, 0);
  }
}

int OpsOn(StreamKind stream, const std::string& log) {
  const std::string text = fmt::format("on stream {} ends", static_cast<int>(stream));
  int count = 0;
  for (size_t at = 0; (at = log.find(text, at)) != std::string::npos; ++at) ++count;
  return count;
}

// With room for all and states in RAM, each piece crosses the link once a step, whole; where there
// is no link nothing does, and workers take gradients, from where they are pushed.
TEST(GrainsSimTest, CopiesAreAsFewAsPiecesOrNone) {
  for (const uint64_t seed : Seeds(30)) {
    for (const bool in_place : {false, true}) {
      Case made = CaseOf(seed);
      made.config.nvme_paths.clear();
      made.config.format = MakeFp32States;
      made.config.budgets = {MiB(64), MiB(256), Bytes(0)};
      made.config.placement.copy_bytes = KiB(int64_t{16} << seed % 7);
      made.config.workers = static_cast<int>(seed % 5 + 1);
      made.sim = {.seed = seed, .hbm_in_place = in_place};
      made.config.link_bytes_per_second = in_place ? 0 : 1;
      const auto plan = MakePlan(made.spec, made.config);
      ASSERT_TRUE(plan.ok()) << plan.status();
      int pieces = 0;  // of which something is updated: what is frozen comes last
      const ParamPieces all(plan->layout, plan->placement);
      for (const ParamPieces::Piece& piece : all.pieces())
        pieces += plan->layout.chunks()[piece.first].keep == Keep::kAll ? 1 : 0;
      ASSERT_EQ(pieces == 0, in_place) << "seed " << seed;
      absl::StatusOr<SimRuntime> sim = MakeSimRuntime(made.spec, made.config, made.sim);
      ASSERT_TRUE(sim.ok()) << sim.status();
      const TrainerOptions options{.steps = 2, .micro_steps = 3};
      testing::Trainer trainer(sim->runtime.get(), made.spec, options);
      const absl::Status loaded = trainer.Load();
      ASSERT_TRUE(loaded.ok()) << loaded;
      const auto now = [&](StreamKind stream) { return OpsOn(stream, sim->world->log()); };
      const int up = now(StreamKind::kHostToDevice), down = now(StreamKind::kDeviceToHost);
      const absl::Status trained = trainer.Run();  // loads again
      ASSERT_TRUE(trained.ok()) << trained;
      EXPECT_EQ(now(StreamKind::kHostToDevice) - 2 * up, options.steps * pieces) << "seed " << seed;
      if (in_place) EXPECT_EQ(now(StreamKind::kDeviceToHost) - 2 * down, 0) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace sluice
