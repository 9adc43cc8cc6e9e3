#include "nvme/finished_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace sluice {
namespace {

using testing::ElementsAre;

TEST(FinishedOpsTest, HandsOutTheFirstAsManyAsFit) {
  std::array<IoOp, 3> ops;
  std::array<IoOp*, 2> done{};
  FinishedOps finished;
  EXPECT_TRUE(finished.empty());
  EXPECT_EQ(finished.HandOut(done), 0u);
  for (IoOp& op : ops) finished.Push(&op);
  EXPECT_EQ(finished.HandOut({}), 0u);
  EXPECT_EQ(finished.size(), 3u);
  EXPECT_EQ(finished.HandOut(done), 2u);
  EXPECT_THAT(done, ElementsAre(&ops[0], &ops[1]));
  EXPECT_EQ(finished.HandOut(done), 1u);
  EXPECT_EQ(done[0], &ops[2]);
  EXPECT_TRUE(finished.empty());
}

TEST(FinishedOpsTest, DropsAllAndReturnsTheFirstFailure) {
  std::array<IoOp, 4> ops;
  ops[1].status = absl::DataLossError("the first");
  ops[2].status = absl::UnavailableError("the second");
  FinishedOps finished;
  EXPECT_TRUE(finished.Drop().ok());
  for (IoOp& op : ops) finished.Push(&op);
  EXPECT_EQ(finished.Drop(), ops[1].status);
  EXPECT_TRUE(finished.empty());
  EXPECT_TRUE(finished.Drop().ok());
}

}  // namespace
}  // namespace sluice
