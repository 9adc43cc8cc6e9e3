// Executors that the thread sanitizer can see.

#include "tests/core/executor_conformance.h"

namespace sluice {
namespace {

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest, testing::Values(Workers::kThreads, Workers::kSimulated),
                         &NameOf);

TEST(MakeExecutorTest, RefusesNoWorkers) {
  for (const int workers : {0, -1}) {
    const absl::Status status = MakeExecutor(ExecutorKind::kThreads, workers).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

TEST(SimExecutorTest, TheSameSeedGivesTheSameTimes) {
  struct Nothing final : Task {
    void Run() override {}
  };
  const auto log_of = [](uint64_t seed) {
    SimWorld world(seed);
    Nothing tasks[20];
    const auto executor = MakeSimExecutor(&world, 3);
    for (Nothing& task : tasks) executor->Submit(&task);
    while (world.RunNext(kForever)) {
    }
    return world.log();
  };
  EXPECT_EQ(log_of(5), log_of(5));
  EXPECT_NE(log_of(5), log_of(6));
}

TEST(ScopedFlushDenormalsTest, RestoresWhatWasThere) {
  volatile float smallest = std::numeric_limits<float>::min();
  {
    const ScopedFlushDenormals outer;
    {
      const ScopedFlushDenormals inner;
      EXPECT_EQ(0.0f, smallest * 0.5f);
    }
    EXPECT_EQ(0.0f, smallest * 0.5f);
  }
  EXPECT_NE(0.0f, smallest * 0.5f);
}

}  // namespace
}  // namespace sluice
