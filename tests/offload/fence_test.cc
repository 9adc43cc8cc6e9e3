// A caller that computes on a stream of its own, behind the calls it makes: parameters are there
// before the stream reads them and stay until it has, gradients are taken when the stream has
// written them, and views that die leave their memory alone until then. And nobody waits for what
// the streams can wait for.

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
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
  TrainerOptions options{.steps = 3, .micro_steps = 2};
  const auto expected = testing::TrainReference(OddModel(), options);
  for (const uint64_t seed : Seeds(40)) {
    SimCaller caller;
    options.units_ahead = seed % 8;  // or all of a backward
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
    // A look at each unit in forward, and two in backward.
    const size_t calls = 3 * 2 * (expected.size() + 3 * OddModel().units.size());
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
        const auto look = [&read, &torn, at, unit, runtime] {
          ++read;
          if (!testing::HoldsLoaded(at, OddModel(), runtime->layout(), {}, unit)) ++torn;
        };
        ASSERT_TRUE(runtime->Release(unit, {&slow}).ok());
        slow.Add(look);  // through the view, which is alive
        slow.Delay(std::chrono::milliseconds(30));
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

// A runtime with room in HBM for one unit at a time, or for a few, whose parameters come from RAM
// or from NVMe.
class AheadTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    RuntimeConfig config = ConfigOf(GetParam());
    config.placement.resident_elements_max = 0;
    const Budgets smallest = testing::SmallestBudgets(spec_, config);
    config.budgets.hbm = smallest.hbm * static_cast<int64_t>(1 + GetParam() % 3);
    config.budgets.pinned = from_ram() ? MiB(64) : smallest.pinned;
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec_, config, {.seed = GetParam()});
    ASSERT_TRUE(sim.ok()) << sim.status();
    sim_ = *std::move(sim);
    trainer_ = std::make_unique<Trainer>(runtime(), spec_, TrainerOptions());
    ASSERT_TRUE(trainer_->Load().ok());
    runtime()->BeginIteration(0, false);
  }
  void TearDown() override { trainer_.reset(); }

  static bool from_ram() { return GetParam() % 2 == 0; }
  OffloadRuntime* runtime() { return sim_.runtime.get(); }
  uint32_t units() const { return static_cast<uint32_t>(spec_.units.size()); }

  // Acquires a unit, puts a look at all of it on the stream, and releases it.
  void Use(UnitIndex unit, SimCallerStream* stream) {
    ASSERT_EQ(trainer_->Wait(runtime()->Acquire(unit, {stream})), absl::OkStatus());
    absl::StatusOr<DlManagedTensor*> view = runtime()->MakeView(unit);
    ASSERT_TRUE(view.ok()) << view.status();
    stream->Add([this, unit, at = static_cast<const std::byte*>((*view)->dl_tensor.data)] {
      ++looks_;
      if (!testing::HoldsLoaded(at, spec_, runtime()->layout(), {}, unit)) ++wrong_;
    });
    ASSERT_TRUE(runtime()->Release(unit, {stream}).ok());
    (*view)->deleter(*view);
  }
  void ExpectAllWasRight(int looks) {
    runtime()->EndIteration();
    ASSERT_EQ(trainer_->Wait(runtime()->Drain()), absl::OkStatus());
    EXPECT_EQ(looks, looks_);
    EXPECT_EQ(0, wrong_);
  }

  const ModelSpec spec_ = OddModel();
  int looks_ = 0;
  int wrong_ = 0;
  SimCallerStream stream_, other_;
  SimRuntime sim_;
  std::unique_ptr<Trainer> trainer_;
};

// The stream has work for minutes. Behind it, before any of that has run, one unit after the other
// is acquired and released, in a cache that may hold one: its slot is filled anew before the stream
// has left it, and the ticket is done before the copy has ended. After that the caller is ahead as
// far as the cache goes, and from NVMe as far as the buffers do.
TEST_P(AheadTest, ACallerIsNotHeldUpByItsStream) {
  const TimePoint begin = sim_.world->Now();
  stream_.Delay(std::chrono::minutes(5));
  for (uint32_t u = 0; u < 2 * units(); ++u) {
    Use(UnitIndex(u % units()), &stream_);
    if (u > 1 || !from_ram()) continue;
    EXPECT_LT(sim_.world->Now() - begin, std::chrono::minutes(1)) << u;
    EXPECT_EQ(0, looks_);
  }
  ExpectAllWasRight(static_cast<int>(2 * units()));
  EXPECT_GE(sim_.world->Now() - begin, std::chrono::minutes(5));
}

// What a stream is yet to read is in nobody's way but that of the units that take its place.
TEST_P(AheadTest, TwoStreamsOfWhichOneIsFarBehind) {
  stream_.Delay(std::chrono::seconds(5));
  for (uint32_t u = 0; u < 3 * units(); ++u)
    Use(UnitIndex(u % units()), u % 3 == 0 ? &stream_ : &other_);
  ExpectAllWasRight(static_cast<int>(3 * units()));
}

// Where the stream can't be told to wait, the ticket is done when the unit has come.
TEST_P(AheadTest, ACallerWhoseStreamIsBeingCapturedWaitsForTheCopy) {
  for (uint32_t u = 0; u < units(); ++u) {
    const UnitIndex unit(u);
    const Ticket ticket = runtime()->Acquire(unit, {&stream_});
    stream_.set_capturing(true);
    ASSERT_EQ(trainer_->Wait(ticket), absl::OkStatus());
    absl::StatusOr<DlManagedTensor*> view = runtime()->MakeView(unit);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_TRUE(testing::HoldsLoaded(static_cast<const std::byte*>((*view)->dl_tensor.data), spec_,
                                     runtime()->layout(), {}, unit));
    EXPECT_TRUE(absl::IsFailedPrecondition(runtime()->Release(unit, {&stream_})));
    stream_.set_capturing(false);
    EXPECT_TRUE(runtime()->Release(unit, {&stream_}).ok());
    (*view)->deleter(*view);
    runtime()->RunOnce(kNoWait);  // the stream is asked before it is captured again
  }
  ExpectAllWasRight(0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AheadTest, ::testing::ValuesIn(Seeds(24)));

}  // namespace
}  // namespace sluice
