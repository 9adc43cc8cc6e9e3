// A unit that is there is acquired without a turn of the loop, and only as it should be: not while
// an update of it is asked for, not after a failure, and its releases are counted.

#include <gtest/gtest.h>

#include <thread>

#include "offload/run/door.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::DrawnFrom;
using testing::Trainer;
using testing::TrainerOptions;

constexpr auto kAtOnce = std::chrono::milliseconds(0);

class ResidentTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    const auto [spec, config] = DrawnFrom(GetParam());
    units_ = spec.units.size();
    auto sim = MakeSimRuntime(spec, config, {.seed = GetParam()});
    ASSERT_TRUE(sim.ok()) << sim.status();
    sim_ = *std::move(sim);
    trainer_ = std::make_unique<Trainer>(sim_.runtime.get(), spec, options_);
    ASSERT_TRUE(trainer_->Load().ok());
  }
  void TearDown() override { trainer_.reset(); }

  size_t units_ = 0;
  TrainerOptions options_;
  SimRuntime sim_;
  std::unique_ptr<Trainer> trainer_;
};

TEST_P(ResidentTest, IsAcquiredAtOnceWhileItIsThere) {
  OffloadRuntime* const runtime = sim_.runtime.get();
  for (uint32_t u = 0; u < units_; ++u) {
    const UnitIndex unit(u);
    ASSERT_TRUE(trainer_->Wait(runtime->Acquire(unit)).ok());
    const TimePoint before = sim_.world->Now();
    EXPECT_EQ(runtime->Wait(runtime->Acquire(unit), kAtOnce), absl::OkStatus());
    for (int held = 2; held > 0; --held) EXPECT_TRUE(runtime->Release(unit).ok());
    EXPECT_FALSE(runtime->Release(unit).ok()) << "one for each acquisition";
    EXPECT_EQ(runtime->Wait(runtime->Acquire(unit), kAtOnce), absl::OkStatus());
    auto view = runtime->MakeView(unit);
    ASSERT_TRUE(view.ok()) << view.status();
    (*view)->deleter(*view);
    EXPECT_TRUE(runtime->Release(unit).ok());
    EXPECT_EQ(sim_.world->Now(), before);
  }
}

TEST_P(ResidentTest, IsNotWhatAnUpdateIsAskedFor) {
  OffloadRuntime* const runtime = sim_.runtime.get();
  ASSERT_TRUE(trainer_->MicroStep(0, options_.micro_steps - 1).ok());
  ASSERT_TRUE(trainer_->Wait(runtime->Acquire(UnitIndex(0))).ok());
  ASSERT_TRUE(runtime->Release(UnitIndex(0)).ok());
  const Ticket step = runtime->Step({.groups = options_.groups, .clip_norm = options_.clip_norm});
  const Ticket after = runtime->Acquire(UnitIndex(0));
  EXPECT_EQ(runtime->Wait(after, kAtOnce), std::nullopt) << "the step comes first";
  EXPECT_TRUE(trainer_->Wait(step).ok());
  EXPECT_TRUE(trainer_->Wait(after).ok());
  EXPECT_TRUE(runtime->Release(UnitIndex(0)).ok());
}

// A hold of which the loop has not heard counts as one.
TEST_P(ResidentTest, IsNotUpdatedWhileItIsHeld) {
  OffloadRuntime* const runtime = sim_.runtime.get();
  ASSERT_TRUE(trainer_->MicroStep(0, options_.micro_steps - 1).ok());
  ASSERT_TRUE(trainer_->Wait(runtime->Acquire(UnitIndex(0))).ok());
  ASSERT_TRUE(runtime->Release(UnitIndex(0)).ok());
  EXPECT_EQ(runtime->Wait(runtime->Acquire(UnitIndex(0)), kAtOnce), absl::OkStatus());
  const absl::Status refused =
      trainer_->Wait(runtime->Step({.groups = options_.groups, .clip_norm = options_.clip_norm}));
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_TRUE(runtime->Release(UnitIndex(0)).ok());
}

INSTANTIATE_TEST_SUITE_P(Seeds, ResidentTest, ::testing::ValuesIn(Seeds(24)));

// Nobody is inside behind a door that was closed on nobody.
TEST(DoorTest, WhoeverClosesItKnowsWhoIsInside) {
  Door door;
  std::atomic<int> unheard{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&] {
      while (!over) {
        if (!door.Enter()) continue;
        ++unheard;
      }
    });
  }
  for (int round = 0; round < 300; ++round) {
    door.Open();
    std::this_thread::yield();
    const bool alone = door.Close();
    EXPECT_TRUE(!alone || unheard == 0);
    while (door.anyone_inside()) {
      if (unheard == 0) continue;
      --unheard;
      door.Announced();
    }
    EXPECT_TRUE(door.Close());
    EXPECT_EQ(unheard, 0);
  }
  over = true;
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace sluice
