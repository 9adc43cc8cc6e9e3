#include "optim/loss_scale.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "core/status.h"

namespace sluice {
namespace {

// The scale after each step of `steps`: 'o' overflows, '.' does not.
std::vector<double> Scales(LossScaler& scaler, std::string_view steps) {
  std::vector<double> scales;
  for (char step : steps) {
    EXPECT_TRUE(scaler.Update(step == 'o').ok());
    scales.push_back(scaler.scale());
  }
  return scales;
}

using ::testing::ElementsAre;

TEST(LossScaleTest, DefaultIsOneForever) {
  LossScaler scaler;
  EXPECT_THAT(Scales(scaler, "..o.oo.."), ElementsAre(1, 1, 1, 1, 1, 1, 1, 1));
}

TEST(LossScaleTest, StaticScaleNeverChangesNorFails) {
  LossScaler scaler({.static_scale = 128, .window = 1, .hysteresis = 1, .min_scale = 128});
  EXPECT_THAT(Scales(scaler, "o.o..."), ElementsAre(128, 128, 128, 128, 128, 128));
}

TEST(LossScaleTest, StartsAtTwoToTheInitialPower) {
  EXPECT_EQ(LossScaler(LossScaleOptions{}).scale(), 65536);
  EXPECT_EQ(LossScaler({.initial_scale_power = 32}).scale(), 4294967296.0);
}

TEST(LossScaleTest, DoublesAfterEachWindowWithoutOverflow) {
  // No overflow yet counts as one before the first step: step 0 is stable for 0 steps.
  LossScaler scaler({.initial_scale_power = 4, .window = 3});
  EXPECT_THAT(Scales(scaler, "......."), ElementsAre(16, 16, 16, 32, 32, 32, 64));
}

TEST(LossScaleTest, HalvesAtOnceWithoutHysteresis) {
  LossScaler scaler({.initial_scale_power = 4, .window = 3, .hysteresis = 1});
  EXPECT_THAT(Scales(scaler, "oo.o"), ElementsAre(8, 4, 4, 2));
}

TEST(LossScaleTest, OverflowRestartsTheWindow) {
  LossScaler scaler({.initial_scale_power = 4, .window = 2, .hysteresis = 1});
  EXPECT_THAT(Scales(scaler, ".o...."), ElementsAre(16, 8, 8, 8, 16, 16));
}

TEST(LossScaleTest, HysteresisAbsorbsOverflowsThenEachOneHalves) {
  LossScaler scaler({.initial_scale_power = 4, .window = 100, .hysteresis = 3});
  EXPECT_THAT(Scales(scaler, "o.ooo"), ElementsAre(16, 16, 16, 8, 4));
}

TEST(LossScaleTest, HysteresisIsRefilledWhenTheScaleGrows) {
  // The refill comes with the doubling at the fourth step: the next overflow is absorbed again.
  LossScaler scaler({.initial_scale_power = 4, .window = 2, .hysteresis = 2});
  EXPECT_THAT(Scales(scaler, "o...oo"), ElementsAre(16, 16, 16, 32, 32, 16));
}

TEST(LossScaleTest, HysteresisIsNotRefilledBySingleGoodSteps) {
  LossScaler scaler({.initial_scale_power = 4, .window = 100, .hysteresis = 2});
  EXPECT_THAT(Scales(scaler, "o.o.o"), ElementsAre(16, 16, 8, 8, 4));
}

TEST(LossScaleTest, ConsecutiveHysteresisIsRefilledByEveryGoodStep) {
  LossScaler scaler(
      {.initial_scale_power = 4, .window = 100, .hysteresis = 2, .consecutive_hysteresis = true});
  EXPECT_THAT(Scales(scaler, "o.o.oo"), ElementsAre(16, 16, 16, 16, 16, 8));
}

TEST(LossScaleTest, StopsAtTheMinimumAndFailsThere) {
  LossScaler scaler({.initial_scale_power = 1, .window = 2, .hysteresis = 1, .min_scale = 1.5});
  EXPECT_THAT(Scales(scaler, "o"), ElementsAre(1.5));
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = scaler.Update(true);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status), ::testing::HasSubstr("minimum of 1.5"));
    EXPECT_EQ(scaler.scale(), 1.5);
  }
  // As if the failed steps had not been: two stable steps after the one overflow that counted.
  EXPECT_THAT(Scales(scaler, "..."), ElementsAre(1.5, 1.5, 3));
}

}  // namespace
}  // namespace sluice
