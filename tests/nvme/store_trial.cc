#include "tests/nvme/store_trial.h"

#include <gmock/gmock.h>

#include <string>

namespace sluice {

using testing::AllOf;
using testing::HasSubstr;

void Trial::JudgeWrite(Block* block) {
  const absl::Status& status = block->transfer.status();
  const bool no_spare = std::string(Message(status)).find("no spare") != std::string::npos;
  EXPECT_EQ(no_spare, block->refused) << status;
  if (block->refused) {
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    ++writes_refused_;
    const std::string& path = store_->drives()[store_->drive(block->transfer.block()).value()].path;
    EXPECT_THAT(std::string(Message(status)),
                AllOf(HasSubstr("drive " + path + " has no spare extent"), HasSubstr("reserve")));
  } else if (status.ok()) {
    block->valid = true;
    block->kept = block->content;
  }
}

void Trial::JudgeBytes(const Transfer& transfer, uint64_t content) {
  if (!transfer.status().ok()) {
    EXPECT_THAT(std::string(Message(transfer.status())), HasSubstr("reading 8192 bytes"));
  } else if (!BlockStore::Verify(transfer).ok()) {
    ++reads_unverified_;
  } else {
    AlignedBuffer expected(kBlockSize);
    FillRandom(expected.view(), content);
    EXPECT_TRUE(SameBytes(transfer.data(), expected.view()));
    ++reads_ok_;
  }
}

}  // namespace sluice
