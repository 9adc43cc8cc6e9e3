// The executor over oneTBB, which the thread sanitizer can't see into.

#include "tests/core/helping_conformance.h"

namespace sluice {
namespace {

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest, testing::Values(Workers::kTbb), &NameOf);

TEST(MakeExecutorTest, RefusesNoWorkersOfOneTbb) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakeExecutor(ExecutorKind::kTbb, 0).status()));
}

}  // namespace
}  // namespace sluice
