// What a failure, or the end of a runtime, leaves of lent tensors is known.

#include <algorithm>
#include <utility>

#include "tests/offload/lent.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Groups;
using testing::kGradType;
using testing::Lending;
using testing::LentConfig;
using testing::MakeGradient;
using testing::Masters;
using testing::Params;
using testing::PushAll;
using testing::Trainer;
using testing::TrainLent;
using testing::ValuesOf;

class LentFailuresTest : public testing::LentTest {};
INSTANTIATE_TEST_SUITE_P(All, LentFailuresTest, ::testing::ValuesIn(testing::kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

// Wherever an update fails: once a drain has said so, nothing writes the caller's memory, and what
// was not written of each parameter is counted, and as it was.
TEST_P(LentFailuresTest, AfterAFailureADrainReturnsWhenLentParametersAreLeftAlone) {
  const ModelSpec spec = Model();
  std::vector<Masters> after;  // so many steps
  for (int steps = 0; steps <= kind().options().steps; ++steps)
    after.push_back(testing::TrainReference(spec, kind().options(steps)));
  constexpr std::pair<SimSeam, SimFault> kFaults[] = {{SimSeam::kRead, SimFault::kCorrupt},
                                                      {SimSeam::kRead, SimFault::kError},
                                                      {SimSeam::kWrite, SimFault::kError}};
  int failures = 0, partly = 0;
  for (const uint64_t seed : Seeds(60)) {
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    config.budgets.hbm = Bytes(0);
    const auto [seam, fault] = kFaults[seed / 3 % 3];
    const auto faults = [&, seam = seam, fault = fault](SimFaults* f) {
      f->Script(seam, fault, 1 + seed % 23 + (seam == SimSeam::kWrite ? 40 : 0),
                SimFaults::Repeat::kOnce);
    };
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = seed, .faults = faults});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Params params(kind(), spec);
    if (TrainLent(runtime, kind(), &params, static_cast<Lending>(seed % 3), 4).ok()) continue;
    ++failures;
    Trainer trainer(runtime, spec, kind().options());
    EXPECT_FALSE(trainer.Wait(runtime->Drain()).ok());
    const auto params_then = params.values;
    const std::vector<int64_t> unwritten = testing::Unwritten(*runtime);
    EXPECT_EQ(testing::Settle(&*sim), "");
    EXPECT_EQ(params.values, params_then);
    EXPECT_EQ(testing::Unwritten(*runtime), unwritten);
    int64_t all = 0;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      SCOPED_TRACE(t);
      const auto steps = static_cast<size_t>(runtime->tensor_step(TensorIndex(t)));
      const std::vector<float> is = ValuesOf(params.values[t], kind().type);
      const std::vector<float> now = ValuesOf(kind().Rounded(after[steps][t]), kind().type);
      const std::vector<float> before =
          ValuesOf(kind().Rounded(after[std::max<size_t>(steps, 1) - 1][t]), kind().type);
      int64_t new_ones = 0, old_ones = 0;  // in rounding some are both
      for (size_t i = 0; i < is.size(); ++i) {
        EXPECT_TRUE(is[i] == now[i] || is[i] == before[i]) << i;
        new_ones += is[i] != before[i] ? 1 : 0;
        old_ones += is[i] != now[i] ? 1 : 0;
      }
      EXPECT_LE(old_ones, unwritten[t]);
      EXPECT_LE(new_ones, spec.tensors[t].elements - unwritten[t]);
      all += unwritten[t];
    }
    partly += all > 0 && all < runtime->layout().parameter_count() ? 1 : 0;
  }
  EXPECT_GT(failures, 10);
  EXPECT_GT(partly, 5);
}

// A runtime that ends carries out what it was asked for, and leaves the caller's memory alone then.
TEST_P(LentFailuresTest, ClosingEndsTheUpdateThatIsUnderWay) {
  const ModelSpec spec = Model();
  const Masters expected = testing::TrainReference(spec, kind().options(1));
  for (const uint64_t seed : Seeds(20)) {
    SCOPED_TRACE(seed);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, LentConfig(seed, spec), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Trainer trainer(runtime, spec, kind().options(1));
    ASSERT_EQ(trainer.Load(), absl::OkStatus());
    Params params(kind(), spec);
    std::vector<std::vector<std::byte>> grads;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      grads.push_back(MakeGradient(0, t, params.values[t].data(), kind().type, kGradType,
                                   spec.tensors[t].elements));
    }
    ASSERT_EQ(PushAll(runtime, &trainer, static_cast<Lending>(seed % 3), 4, grads),
              absl::OkStatus());
    const Ticket step = runtime->Step(
        {.groups = Groups(), .lent = params.places, .clip_norm = kind().options().clip_norm});
    if (seed % 2 == 0) {
      ASSERT_EQ(trainer.Wait(step), absl::OkStatus());
    }
    for (uint64_t turn = 0; turn < seed % 8; ++turn)
      runtime->RunOnce(sim->world->Now() + std::chrono::microseconds(50));
    ASSERT_EQ(OffloadRuntime::Close(std::move(sim->runtime)), absl::OkStatus());
    for (uint32_t t = 0; t < spec.tensors.size(); ++t)
      EXPECT_EQ(params.values[t], kind().Rounded(expected[t])) << t;
  }
}

}  // namespace
}  // namespace sluice
