#include "nvme/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <vector>

#include "core/status.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TransferTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir_.path(), KiB(256));
    ASSERT_TRUE(file.ok()) << file.status();
    files_.push_back(*std::move(file));
    op_.kind = IoKind::kWrite;
    op_.file = FileIndex(0);
    op_.offset = FileOffset(8192);
    op_.memory = buffer_.view();
  }

  std::string ErrorOf(int64_t result) {
    int retries = 0;
    EXPECT_FALSE(GoesOn(&op_, result, files_, &retries));
    return std::string(Message(op_.status));
  }

  TempDir dir_;
  std::vector<DirectFile> files_;
  AlignedBuffer buffer_{64 << 10};
  IoOp op_;
};

TEST_F(TransferTest, ShortTransfersGoOnFromAnAlignedPlaceUntilAllIsMoved) {
  const int64_t alignment = files_[0].alignment().value();
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    op_.transferred = Bytes(0);
    std::vector<bool> moved(op_.memory.size());
    int retries = 0;
    int64_t result = 0;
    do {
      ASSERT_EQ(op_.transferred.value() % alignment, 0);
      const auto left = static_cast<int64_t>(op_.memory.size()) - op_.transferred.value();
      const Rest rest = RestOf(op_);
      ASSERT_EQ(rest.memory.data(), op_.memory.data() + op_.transferred.size());
      ASSERT_EQ(static_cast<int64_t>(rest.memory.size()), left);
      ASSERT_EQ(rest.offset.value(), op_.offset.value() + op_.transferred.value());
      result = left <= 4096 ? left : 1 + static_cast<int64_t>(random()) % left;
      if (random() % 4 == 0) result = -EINTR;
      for (int64_t i = 0; i < result; ++i)
        moved[op_.transferred.size() + static_cast<size_t>(i)] = true;
    } while (GoesOn(&op_, result, files_, &retries));
    ASSERT_TRUE(op_.status.ok()) << op_.status;
    EXPECT_EQ(op_.transferred.size(), op_.memory.size());
    EXPECT_EQ(std::count(moved.begin(), moved.end(), false), 0);
  }
}

TEST_F(TransferTest, TheEndOfTheFileIsAnError) {
  op_.kind = IoKind::kRead;
  int retries = 0;
  ASSERT_TRUE(GoesOn(&op_, 4096, files_, &retries));
  EXPECT_FALSE(GoesOn(&op_, 0, files_, &retries));
  EXPECT_TRUE(absl::IsDataLoss(op_.status));
  EXPECT_THAT(Message(op_.status), AllOf(HasSubstr("reading 65536 bytes at 8192 of swap file 0"),
                                         HasSubstr(dir_.path()), HasSubstr("after 4096 bytes")));
  EXPECT_EQ(op_.transferred, Bytes(4096));
}

TEST_F(TransferTest, LessThanASectorAgainAndAgainEnds) {
  if (files_[0].alignment() == Bytes(1)) GTEST_SKIP() << "no direct I/O in " << dir_.path();
  int retries = 0;
  int calls = 1;
  while (GoesOn(&op_, 100, files_, &retries)) ASSERT_LT(++calls, 100);
  EXPECT_GT(calls, 1);
  EXPECT_TRUE(absl::IsDataLoss(op_.status));
}

TEST_F(TransferTest, InterruptionsAreRetriedABoundedNumberOfTimesInARow) {
  for (int error : {EINTR, EAGAIN}) {
    op_.transferred = Bytes(0);
    int retries = 0;
    // With progress in between, any number of them.
    for (int64_t done = 0; done < 60 << 10; done += 4096) {
      for (int i = 0; i < 10; ++i) ASSERT_TRUE(GoesOn(&op_, -error, files_, &retries));
      ASSERT_TRUE(GoesOn(&op_, 4096, files_, &retries));
    }
    int calls = 1;
    while (GoesOn(&op_, -error, files_, &retries)) ASSERT_LT(++calls, 100);
    EXPECT_TRUE(absl::IsUnavailable(op_.status)) << op_.status;
  }
}

TEST_F(TransferTest, ErrorsNameWhatAndWhereAndWhich) {
  EXPECT_THAT(ErrorOf(-ENOSPC), AllOf(HasSubstr("writing 65536 bytes at 8192 of swap file 0"),
                                      HasSubstr(dir_.path()), HasSubstr("ENOSPC")));
  EXPECT_TRUE(absl::IsResourceExhausted(op_.status));
  EXPECT_THAT(ErrorOf(-EIO), HasSubstr("EIO"));
  EXPECT_TRUE(absl::IsDataLoss(op_.status));
}

TEST_F(TransferTest, WhatIsNotLegalIsRefusedBeforeTheKernelSeesIt) {
  EXPECT_TRUE(CheckOp(op_, files_).ok());
  IoOp op = op_;
  op.file = FileIndex(7);
  EXPECT_THAT(std::string(Message(CheckOp(op, files_))),
              AllOf(HasSubstr("file 7"), HasSubstr("EBADF")));
  op = op_;
  op.offset = FileOffset(-4096);
  EXPECT_TRUE(absl::IsInvalidArgument(CheckOp(op, files_)));
  op = op_;
  op.memory = {};
  EXPECT_TRUE(absl::IsInvalidArgument(CheckOp(op, files_)));
}

TEST_F(TransferTest, MemoryOffsetAndLengthMustBeAligned) {
  if (files_[0].alignment() == Bytes(1)) GTEST_SKIP() << "no direct I/O in " << dir_.path();
  IoOp op = op_;
  op.offset = FileOffset(8193);
  EXPECT_TRUE(absl::IsInvalidArgument(CheckOp(op, files_)));
  op = op_;
  op.memory = op_.memory.first(4097);
  EXPECT_TRUE(absl::IsInvalidArgument(CheckOp(op, files_)));
  op = op_;
  op.memory = op_.memory.subspan(1, 4096);
  EXPECT_TRUE(absl::IsInvalidArgument(CheckOp(op, files_)));
}

}  // namespace
}  // namespace sluice
