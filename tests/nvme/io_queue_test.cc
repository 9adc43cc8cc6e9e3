#include "nvme/io_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <deque>
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
  IoQueue queue_{&engine_, {100}, {DriveIndex(0)}};
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

// Of three drives, whose depths are 1, 2 and 3; drive d has file d.
class DriveQueuesTest : public IoQueueTest {
 protected:
  DriveQueuesTest() {
    for (size_t i = 0; i < ops_.size(); ++i) ops_[i].file = FileIndex(i % 3);
  }
  std::vector<int64_t> SubmitAll(size_t room) {
    engine_.room = room;
    engine_.got.clear();
    queues_.Submit();
    return engine_.got;
  }

  IoQueue queues_{&engine_, {1, 2, 3}, {DriveIndex(0), DriveIndex(1), DriveIndex(2)}};
};

TEST_F(DriveQueuesTest, EachFillsItsOwnDepthInTurn) {
  for (size_t i = 0; i < 30; ++i) queues_.Push(&ops_[i], IoPriority::kNormal);
  EXPECT_THAT(SubmitAll(100), ElementsAre(0, 1, 2, 4, 5, 8));
  EXPECT_THAT(SubmitAll(100), IsEmpty());
  queues_.Ended(ops_[1]);
  queues_.Ended(ops_[5]);
  EXPECT_THAT(SubmitAll(100), testing::UnorderedElementsAre(7, 11));
  EXPECT_EQ(queues_.size(), 22u);
}

TEST_F(DriveQueuesTest, UrgentOnesOfAllDrivesGoFirst) {
  for (size_t i = 0; i < 12; ++i)
    queues_.Push(&ops_[i], i < 6 ? IoPriority::kNormal : IoPriority::kUrgent);
  EXPECT_THAT(SubmitAll(100), ElementsAre(6, 7, 8, 10, 11, 2));
}

// An engine with fewer places than the drives have together serves them in turn.
TEST_F(DriveQueuesTest, NoDriveIsPassedOverForWantOfRoom) {
  for (size_t i = 0; i < 30; ++i) queues_.Push(&ops_[i], IoPriority::kNormal);
  std::vector<int64_t> drives;
  for (int turn = 0; turn < 6; ++turn) {
    const std::vector<int64_t> got = SubmitAll(1);
    ASSERT_EQ(got.size(), 1u);
    drives.push_back(got[0] % 3);
    queues_.Ended(ops_[static_cast<size_t>(got[0])]);
  }
  EXPECT_THAT(drives, ElementsAre(0, 1, 2, 0, 1, 2));
}

// Whatever room there is and whatever ends: order within a drive, and its depth.
TEST_F(DriveQueuesTest, DepthsAndOrderHoldUnderAnyRoom) {
  for (size_t i = 0; i < 99; ++i) queues_.Push(&ops_[i], IoPriority::kNormal);
  std::array<std::deque<int64_t>, 3> out;
  std::array<int64_t, 3> next = {0, 1, 2};
  for (size_t turn = 0; queues_.size() > 0 || !out[0].empty(); ++turn) {
    ASSERT_LT(turn, 1000u);
    for (const int64_t op : SubmitAll(turn * 7 % 5)) {
      const auto d = static_cast<size_t>(op % 3);
      EXPECT_EQ(op, next[d]);
      next[d] += 3;
      out[d].push_back(op);
      EXPECT_LE(out[d].size(), d + 1);
    }
    std::deque<int64_t>& some = out[turn % 3];
    if (some.empty()) continue;
    queues_.Ended(ops_[static_cast<size_t>(some.front())]);
    some.pop_front();
  }
  EXPECT_THAT(next, ElementsAre(99, 100, 101));
}

}  // namespace
}  // namespace sluice
