// A caller that computes on a stream of its own, behind the calls it makes: parameters stay until
// the stream has read them, gradients are taken when the stream has written them, and views that
// die leave their memory alone until then.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "offload/sim/sim_factory.h"
#include "tests/core/seeds.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using testing::OddModel;
using testing::SimCaller;
using testing::Trainer;
using testing::TrainerOptions;

RuntimeConfig ConfigOf(uint64_t seed) {
  SimWorld dice(seed ^ 0xfe7ce);
  RuntimeConfig config;
  config.types.param = FloatType::kBf16;
  config.types.grad = FloatType::kBf16;
  config.placement.resident_elements_max = dice.OneIn(2) ? 100 : 6000;
  config.chunk_elements = kCellElements * static_cast<int64_t>(dice.Uniform(1, 3));
  config.budgets.hbm = KiB(static_cast<int64_t>(dice.Uniform(90, 320)));
  config.budgets.pinned = KiB(static_cast<int64_t>(dice.Uniform(640, 2200)));
  config.budgets.nvme = GiB(1);
  config.nvme_paths = {"simulated"};
  return config;
}

TEST(FenceTest, ACallerThatComputesLaterTrainsTheSameBits) {
  const TrainerOptions options{.steps = 3, .micro_steps = 2};
  const auto expected = testing::TrainReference(OddModel(), options);
  for (const uint64_t seed : Seeds(25)) {
    SimCaller caller;
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(OddModel(), ConfigOf(seed), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    Trainer trainer(sim->runtime.get(), OddModel(), options, &caller);
    const absl::Status status = trainer.Run();
    ASSERT_TRUE(status.ok()) << "seed " << seed << ": " << status;
    for (uint32_t t = 0; t < expected.size(); ++t) {
      const absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
      ASSERT_TRUE(master.ok()) << "seed " << seed << ": " << master.status();
      ASSERT_EQ(expected[t], *master) << "seed " << seed << ", tensor " << t;
    }
    const size_t calls = 3 * 2 * (expected.size() + OddModel().units.size());
    EXPECT_EQ(caller.computed(), static_cast<int>(calls)) << "seed " << seed;
  }
}

// Compared with the test above, only the order is lost: what a caller without a stream may not do.
TEST(FenceTest, WithoutItsStreamTheSameCallerTrainsOtherBits) {
  class Unordered final : public testing::Caller {
   public:
    const std::byte* Compute(const std::byte* params, size_t bytes, size_t grad_bytes,
                             Function function) override {
      return later_.Compute(params, bytes, grad_bytes, std::move(function));
    }

   private:
    SimCaller later_;
  };
  Unordered caller;
  const TrainerOptions options{.steps = 1};
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(OddModel(), ConfigOf(1), {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  Trainer trainer(sim->runtime.get(), OddModel(), options, &caller);
  const absl::Status status = trainer.Run();
  const absl::StatusOr<std::vector<float>> master = trainer.Read(0, Field::kMaster);
  EXPECT_TRUE(!status.ok() || !master.ok() ||
              *master != testing::TrainReference(OddModel(), options)[0]);
}

// Two streams of the caller's acquire each unit; one of them, which is slow, still reads when the
// other has released everything and the view has died.
TEST(FenceTest, ASlotIsNotReusedUnderTheOtherOfTwoStreams) {
  for (const uint64_t seed : Seeds(25)) {
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    config.placement.resident_elements_max = 0;
    config.budgets.hbm = testing::SmallestBudgets(OddModel(), config).hbm * 2;
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(OddModel(), config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Trainer trainer(runtime, OddModel(), {});
    ASSERT_TRUE(trainer.Load().ok());
    SimCallerStream slow, quick;
    int read = 0, torn = 0;
    for (int round = 0; round < 3; ++round) {
      runtime->BeginIteration(0, false);
      for (uint32_t u = 0; u < OddModel().units.size(); ++u) {
        const UnitIndex unit(u);
        for (SimCallerStream* stream : {&slow, &quick})
          ASSERT_EQ(trainer.Wait(runtime->Acquire(unit, {stream})), absl::OkStatus());
        absl::StatusOr<DlManagedTensor*> view = runtime->MakeView(unit);
        ASSERT_TRUE(view.ok()) << view.status();
        const auto* at = static_cast<const std::byte*>((*view)->dl_tensor.data);
        const std::vector<std::byte> bytes(at, at + 2 * (*view)->dl_tensor.shape[0]);
        const auto look = [&read, &torn, at, bytes] {
          ++read;
          if (std::memcmp(at, bytes.data(), bytes.size()) != 0) ++torn;
        };
        ASSERT_TRUE(runtime->Release(unit, {&slow}).ok());
        slow.Add(look);  // through the view, which is alive
        slow.reached = std::max(slow.reached, sim->world->Now()) + std::chrono::milliseconds(30);
        ASSERT_TRUE(runtime->Release(unit, {&quick}).ok());
        (*view)->deleter(*view);
      }
      runtime->EndIteration();
    }
    ASSERT_EQ(trainer.Wait(runtime->Drain()), absl::OkStatus());
    EXPECT_EQ(3 * static_cast<int>(OddModel().units.size()), read);
    EXPECT_EQ(0, torn);
  }
}

}  // namespace
}  // namespace sluice
