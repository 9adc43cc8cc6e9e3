// Where there is a GPU and where there is none: what is chosen is said, and nothing falls back
// silently.

#include "core/device_choice.h"

#include <gtest/gtest.h>

#include "core/cuda_device.h"
#include "core/status.h"

namespace sluice {
namespace {

TEST(DeviceChoiceTest, TheHostIsAlwaysThere) {
  const absl::StatusOr<DeviceChoice> choice = ChooseDevice(DeviceKind::kHost, 0);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(DeviceKind::kHost, choice->kind);
  EXPECT_EQ("asked for", choice->reason);
  EXPECT_FALSE(choice->memory_free);
}

TEST(DeviceChoiceTest, WhatIsFoundDecidesAndIsNamed) {
  const auto probe = ProbeCuda(0);
  const absl::StatusOr<DeviceChoice> automatic = ChooseDevice(DeviceKind::kAuto, 0);
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  EXPECT_EQ(probe.ok() ? DeviceKind::kCuda : DeviceKind::kHost, automatic->kind);
  const std::string_view begin = probe.ok() ? "found " : "no GPU can be used: ";
  EXPECT_TRUE(automatic->reason.starts_with(begin)) << automatic->reason;
  EXPECT_EQ(probe.ok(), automatic->memory_free.has_value());
}

TEST(DeviceChoiceTest, AGpuThatIsNotThereIsAnErrorNotTheHost) {
  const absl::Status status = ChooseDevice(DeviceKind::kCuda, 999).status();
  ASSERT_FALSE(status.ok());
  EXPECT_TRUE(Message(status).starts_with("device 'cuda' was asked for: ")) << status;
}

}  // namespace
}  // namespace sluice
