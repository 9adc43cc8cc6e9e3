// Each term against numbers worked out by hand.

#include "offload/plan/floor.h"

#include <gtest/gtest.h>

#include "offload/plan/layout.h"
#include "offload/plan/placement.h"
#include "offload/plan/traffic.h"

namespace sluice {
namespace {

constexpr StepTraffic kTraffic = {.elements_updated = 1'000'000,
                                  .nvme_read = Bytes(900'000'000),
                                  .nvme_written = Bytes(700'000'000),
                                  .read_ahead = Bytes(100'000'000),
                                  .checksummed = Bytes(1'600'000'000),
                                  .to_hbm = Bytes(30'000'000),
                                  .grads = Bytes(20'000'000)};
constexpr HardwareRates kRates = {.forward_seconds = 0.25,
                                  .backward_seconds = 0.5,
                                  .nvme_bytes = 1e9,
                                  .update_elements = 10e6,
                                  .checksum_bytes = 16e9,
                                  .copy_bytes = 1e9,
                                  .shared_cores = true};

TEST(FloorTest, TermByTerm) {
  const FloorTerms t = Floor(kTraffic, kRates);
  EXPECT_DOUBLE_EQ(0.25, t.forward);
  EXPECT_DOUBLE_EQ(0.5, t.backward);
  EXPECT_DOUBLE_EQ(1.5, t.io) << "(900 + 700 - 100) MB at 1 GB/s";
  EXPECT_DOUBLE_EQ(0.1, t.update);
  EXPECT_DOUBLE_EQ(0.1, t.checksum);
  EXPECT_DOUBLE_EQ(0.03, t.copies);
  EXPECT_DOUBLE_EQ(0.02, t.gradients);
}

TEST(FloorTest, OnSharedCoresTheirWorkAddsUp) {
  EXPECT_DOUBLE_EQ(0.5 + 0.02 + 1.5, Floor(kTraffic, kRates).total) << "the drive is the limit";
  HardwareRates fast_drive = kRates;
  fast_drive.nvme_bytes = 10e9;
  EXPECT_DOUBLE_EQ(0.5 + 0.02 + (0.25 + 0.1 + 0.1 + 0.03), Floor(kTraffic, fast_drive).total)
      << "the cores are";
}

TEST(FloorTest, BesideAGpuTheyRunSideBySide) {
  HardwareRates gpu = kRates;
  gpu.shared_cores = false;
  EXPECT_DOUBLE_EQ(0.5 + 1.5, Floor(kTraffic, gpu).total);
  gpu.nvme_bytes = 10e9;
  EXPECT_DOUBLE_EQ(0.5 + 0.25, Floor(kTraffic, gpu).total) << "forward";
  gpu.update_elements = 2e6;
  EXPECT_DOUBLE_EQ(0.5 + (0.5 + 0.1), Floor(kTraffic, gpu).total) << "update and checksums";
  gpu.copy_bytes = 20e6;
  EXPECT_DOUBLE_EQ(0.5 + 1.5, Floor(kTraffic, gpu).total) << "the link";
}

TEST(FloorTest, WhatRanksSendIsATermOfBothParts) {
  for (const bool shared_cores : {false, true}) {
    HardwareRates rates = kRates;
    rates.shared_cores = shared_cores;
    rates.nvme_bytes = 10e9;
    const double alone = Floor(kTraffic, rates).total;
    rates.links_backward_seconds = 0.4;
    rates.links_forward_seconds = 0.2;
    EXPECT_DOUBLE_EQ(alone, Floor(kTraffic, rates).total) << "hidden";
    rates.links_backward_seconds = 2;
    rates.links_forward_seconds = 3;
    EXPECT_DOUBLE_EQ(5, Floor(kTraffic, rates).total) << "the links";
  }
}

TEST(FloorTest, ARateOfZeroCostsNothing) {
  const FloorTerms t = Floor(kTraffic, {.forward_seconds = 1, .backward_seconds = 2});
  EXPECT_EQ(0, t.io + t.update + t.checksum + t.copies + t.gradients);
  EXPECT_EQ(3, t.total);
}

// Two units of two chunks of 4096 elements; bf16, all homes by hand.
class TrafficTest : public testing::Test {
 protected:
  static constexpr int64_t kStates = 12 * 4096;
  static constexpr int64_t kParams = 2 * 8192;  // of a unit

  TrafficTest() {
    const ModelSpec spec = {
        .units = {{"a"}, {"b"}},
        .tensors = {{"x", UnitIndex(0), 8192, 0}, {"y", UnitIndex(1), 8192, 0}}};
    layout_ = *ModelLayout::Make(spec, 4096, {.param = FloatType::kBf16, .grad = FloatType::kBf16});
    options_.resident_elements_max = 0;
    options_.state_buffers = options_.param_buffers = 2;
  }
  StepTraffic Traffic(const Budgets& budgets) {
    const absl::StatusOr<Placement> placement = MakePlacement(layout_, budgets, options_);
    EXPECT_TRUE(placement.ok()) << placement.status();
    return TrafficOf(layout_, *placement);
  }

  ModelLayout layout_;
  PlacementOptions options_;
};

TEST_F(TrafficTest, WithRoomForAllOnlyGradientsAndUpdatedParametersMove) {
  const StepTraffic t = Traffic({MiB(1), MiB(1), Bytes(0)});
  EXPECT_EQ(16384, t.elements_updated);
  EXPECT_EQ(Bytes(0), t.nvme_read + t.nvme_written + t.checksummed + t.read_ahead);
  EXPECT_EQ(Bytes(2 * 16384), t.grads);
  EXPECT_EQ(Bytes(2 * kParams), t.to_hbm);
}

// One unit lives in HBM, the other is brought there once: that of both is copied.
TEST_F(TrafficTest, WhatLivesInHbmIsCopiedWhenItWasUpdated) {
  options_.resident_elements_max = 8192;
  const ModelSpec spec = {.units = {{"a"}, {"frozen"}, {"streamed"}},
                          .tensors = {{"x", UnitIndex(0), 8192, 0},
                                      {"y", UnitIndex(1), 8192, 0, Keep::kParam},
                                      {"z", UnitIndex(2), 16384, 0}}};
  layout_ = *ModelLayout::Make(spec, 4096, {.param = FloatType::kBf16, .grad = FloatType::kBf16});
  const StepTraffic t = Traffic({Bytes(4 * kParams), MiB(2), Bytes(0)});
  EXPECT_EQ(Bytes(2 * kParams + kParams), t.to_hbm);
}

TEST_F(TrafficTest, WithRoomForNothingAllMoves) {
  // One unit in HBM at a time; in pinned memory gradients and two buffers of each kind.
  const StepTraffic t =
      Traffic({Bytes(kParams), Bytes(2 * kParams + 2 * kStates + 2 * 8192), GiB(1)});
  EXPECT_EQ(Bytes(4 * kStates + 2 * kParams), t.nvme_written);
  EXPECT_EQ(Bytes(3 * kParams), t.to_hbm) << "both in forward, and in backward all but the last";
  EXPECT_EQ(Bytes(4 * kStates + 3 * kParams), t.nvme_read);
  EXPECT_EQ(Bytes(2 * kStates), t.read_ahead);
  EXPECT_EQ(t.nvme_read + t.nvme_written, t.checksummed);
}

// As above without room for gradients but two buffers: each goes to the drive and comes back.
TEST_F(TrafficTest, GradientsThatPinnedMemoryCantHoldGoAndComeOnce) {
  constexpr int64_t kGrads = 2 * 16384;
  const StepTraffic t = Traffic({Bytes(kParams), Bytes(2 * kStates + 2 * 8192 + 2 * 8192), GiB(1)});
  EXPECT_EQ(Bytes(kGrads), t.spilled);
  EXPECT_EQ(Bytes(4 * kStates + 2 * kParams + kGrads), t.nvme_written);
  EXPECT_EQ(Bytes(4 * kStates + 3 * kParams + kGrads), t.nvme_read);
  // On their way out they have backward; on their way back they don't.
  HardwareRates rates{.forward_seconds = 0, .backward_seconds = 0, .nvme_bytes = 1e6};
  const FloorTerms floor = Floor(t, rates);
  EXPECT_DOUBLE_EQ(floor.spill, kGrads / 1e6);
  EXPECT_DOUBLE_EQ(floor.total, floor.spill + floor.io);
  rates.backward_seconds = 2 * floor.spill;
  EXPECT_DOUBLE_EQ(Floor(t, rates).total, rates.backward_seconds + floor.io);
}

}  // namespace
}  // namespace sluice
