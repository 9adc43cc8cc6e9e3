#include "nvme/io_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace sluice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Notes what it is given and takes as much as it is told to.
class RecordingEngine final : public IoEngine {
 public:
  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    for (; taken < ops.size() && room > 0; ++taken, --room)
      got.push_back(ops[taken]->offset.value());
    return taken;
  }
  size_t Poll(std::span<IoOp*>, Deadline) override { return 0; }
  void Wake() override {}
  size_t in_flight() const override { return got.size(); }
  std::string description() const override { return "recording"; }
  absl::Status Close() override { return absl::OkStatus(); }

  size_t room = 0;
  std::vector<int64_t> got;
};

class IoQueueTest : public testing::Test {
 protected:
  IoQueueTest() {
    for (size_t i = 0; i < ops_.size(); ++i) ops_[i].offset = FileOffset(static_cast<int64_t>(i));
  }
  void Push(size_t op, IoPriority priority) { queue_.Push(&ops_[op], priority); }
  std::vector<int64_t> Submit(size_t room) {
    engine_.room = room;
    engine_.got.clear();
    queue_.Submit();
    return engine_.got;
  }

  std::array<IoOp, 100> ops_;
  RecordingEngine engine_;
  IoQueue queue_{&engine_};
};

TEST_F(IoQueueTest, UrgentGoesFirstAndEachClassInOrder) {
  Push(1, IoPriority::kNormal);
  Push(2, IoPriority::kNormal);
  Push(3, IoPriority::kUrgent);
  Push(4, IoPriority::kUrgent);
  EXPECT_EQ(queue_.size(), 4u);
  EXPECT_THAT(Submit(10), ElementsAre(3, 4, 1, 2));
  EXPECT_EQ(queue_.size(), 0u);
}

TEST_F(IoQueueTest, WhatFindsNoRoomKeepsItsPlace) {
  for (size_t i = 0; i < 5; ++i) Push(i, IoPriority::kNormal);
  EXPECT_THAT(Submit(0), IsEmpty());
  EXPECT_THAT(Submit(2), ElementsAre(0, 1));
  EXPECT_EQ(queue_.size(), 3u);
  Push(5, IoPriority::kNormal);
  Push(6, IoPriority::kUrgent);
  EXPECT_THAT(Submit(1), ElementsAre(6));
  EXPECT_THAT(Submit(10), ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(Submit(10), IsEmpty());
}

TEST_F(IoQueueTest, MoreThanItOffersAtOnceGoesInOrderToo) {
  for (size_t i = 0; i < ops_.size(); ++i) Push(i, IoPriority::kNormal);
  std::vector<int64_t> all;
  for (size_t room : {1, 30, 16, 17, 50}) {
    for (int64_t op : Submit(room)) all.push_back(op);
  }
  ASSERT_EQ(all.size(), ops_.size());
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<int64_t>(i));
}

}  // namespace
}  // namespace sluice
