// A runtime is closed in bounded time whatever hangs in it, says what that is, and frees nothing
// that what hangs may still touch: the world goes on afterwards, and what had hung ends.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/core/seeds.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using ::testing::HasSubstr;
using testing::OddModel;
using testing::SimCaller;
using testing::Trainer;
using testing::TrainerOptions;

constexpr Nanos kAtMost = std::chrono::seconds(5);

struct Hang {
  SimSeam seam;
  const char* name;
  std::vector<std::string> words;  // each of them is said of some hang
  bool streams = false;            // the caller computes on a stream of its own
  bool states_in_hbm = false;
};

class SimCloseTest : public ::testing::TestWithParam<Hang> {
 protected:
  static RuntimeConfig Config(const Hang& hang, uint64_t seed) {
    RuntimeConfig config = ConfigOf(seed);
    if (hang.seam == SimSeam::kRead || hang.seam == SimSeam::kWrite)
      config.budgets.pinned = testing::SmallestBudgets(OddModel(), config).pinned;
    config.budgets.hbm = std::max(config.budgets.hbm, KiB(240));  // room beside lingering views
    if (!hang.states_in_hbm) return config;
    config.placement.lowest_state_tier = Tier::kHbm;
    config.highest_state_tier_on_host = Tier::kHbm;
    config.budgets.hbm = MiB(8);
    config.nvme_paths.clear();
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(
    All, SimCloseTest,
    ::testing::Values(
        Hang{SimSeam::kRead, "Read", {"1 reads of swap file "}},
        Hang{SimSeam::kWrite, "Write", {"1 writes of swap file "}},
        Hang{SimSeam::kTask, "Task", {"1 tasks of the workers"}},
        Hang{SimSeam::kCopy, "Copy", {"1 copies to the device", "1 copies from the device"}},
        Hang{SimSeam::kCopy,
             "Computation",
             {"1 copies to the device", "1 copies from the device", "1 computations of the device"},
             false,
             true},
        Hang{SimSeam::kFence,
             "CallersStream",
             {"1 copies from the device, which wait for a stream of the caller's",
              "1 waits for a stream of the caller's"},
             true}),
    [](const ::testing::TestParamInfo<Hang>& info) { return std::string(info.param.name); });

TEST_P(SimCloseTest, EndsInTimeSaysWhatHangsAndFreesNothingThatMayBeTouched) {
  const Hang& hang = GetParam();
  std::set<std::string> said;
  int hung = 0;
  for (uint64_t n = 1; n < 400; n += 1 + n / 8) {
    SCOPED_TRACE(fmt::format("call {}", n));
    const auto faults = [&](SimFaults* f) {
      f->Script(hang.seam, SimFault::kSilent, n, SimFaults::Repeat::kOnce);
    };
    absl::StatusOr<SimRuntime> sim =
        MakeSimRuntime(OddModel(), Config(hang, n % 7), {.seed = n, .faults = faults});
    ASSERT_TRUE(sim.ok()) << sim.status();
    SimWorld* const world = sim->world.get();
    const Bytes pinned =
        Bytes(nlohmann::json::parse(sim->runtime->ReportJson())["planned_bytes"]["pinned"]
                  .get<int64_t>());
    SimCaller caller;
    Trainer trainer(sim->runtime.get(), OddModel(), {.steps = 2, .lingering_views = n % 3},
                    hang.streams ? &caller : nullptr);
    const absl::Status trained = trainer.Run();
    EXPECT_TRUE(trained.ok() || absl::IsDeadlineExceeded(trained)) << trained;
    const TimePoint begin = world->Now();
    const absl::Status closed = OffloadRuntime::Close(std::move(sim->runtime));
    EXPECT_LE(Seconds(world->Now() - begin), Seconds(kAtMost));
    const bool happened = world->faults()->happened() > 0;
    if (!happened) break;
    ++hung;
    ASSERT_TRUE(absl::IsUnavailable(closed)) << closed;
    for (const std::string& words : hang.words) {
      if (std::string(Message(closed)).find(words) != std::string::npos) said.insert(words);
    }
    EXPECT_THAT(std::string(Message(closed)), HasSubstr("the runtime was abandoned"));
    if (n % 3 == 0 && (hang.seam == SimSeam::kRead || hang.seam == SimSeam::kWrite)) {
      EXPECT_EQ(sim->memory->in_use(), pinned) << "no drive touches HBM";
    }
    testing::KeepAbandoned(*std::move(sim));
    // The process goes on: another runtime trains.
    const testing::Outcome next =
        testing::Simulate(OddModel(), ConfigOf(n), {.seed = n}, {.steps = 1});
    EXPECT_TRUE(next.status.ok()) << next.status;
  }
  EXPECT_GT(hung, 8);
  EXPECT_THAT(said, ::testing::UnorderedElementsAreArray(hang.words));
}

// Everything is late, or never comes, at any moment.
TEST(SimCloseTest, InTheMiddleOfAnythingItEndsInTime) {
  int whole = 0;
  int abandoned = 0;
  for (const uint64_t seed : Seeds(80)) {
    SCOPED_TRACE(seed);
    SimWorld dice(seed);
    const auto faults = [&dice](SimFaults* f) {
      const SimFault fault = dice.OneIn(2) ? SimFault::kLate : SimFault::kSilent;
      f->Draw(static_cast<SimSeam>(dice.Uniform(0, 4)), fault, dice.Uniform(10, 150));
    };
    absl::StatusOr<SimRuntime> sim =
        MakeSimRuntime(OddModel(), ConfigOf(seed), {.seed = seed, .faults = faults});
    ASSERT_TRUE(sim.ok()) << sim.status();
    SimWorld* const world = sim->world.get();
    SimCaller caller;
    Trainer trainer(sim->runtime.get(), OddModel(), {.steps = 1}, &caller);
    std::vector<std::vector<float>> values;
    if (trainer.Load().ok() && dice.OneIn(2) && trainer.MicroStep(0, 0).ok() && dice.OneIn(2))
      sim->runtime->Step({.groups = testing::Groups(), .clip_norm = 1.0});
    for (uint32_t t = 0; t < OddModel().tensors.size(); ++t) {
      values.emplace_back(static_cast<size_t>(OddModel().tensors[t].elements));
      sim->runtime->Access({.write = dice.OneIn(3),
                            .tensor = TensorIndex(t),
                            .data = reinterpret_cast<std::byte*>(values.back().data()),
                            .done = nullptr});
    }
    for (uint64_t turns = dice.Uniform(0, 40); turns > 0; --turns)
      sim->runtime->RunOnce(world->Now() + std::chrono::milliseconds(1));
    const TimePoint begin = world->Now();
    const absl::Status closed = OffloadRuntime::Close(std::move(sim->runtime));
    EXPECT_LE(Seconds(world->Now() - begin), Seconds(kAtMost));
    if (closed.ok()) {
      values.clear();  // nobody reads or writes them any more
      ++whole;
    } else {
      EXPECT_TRUE(absl::IsUnavailable(closed)) << closed;
      ++abandoned;
    }
    if (!closed.ok()) testing::KeepAbandoned(*std::move(sim));
  }
  EXPECT_GT(whole, 10);
  EXPECT_GT(abandoned, 10);
}

}  // namespace
}  // namespace sluice
