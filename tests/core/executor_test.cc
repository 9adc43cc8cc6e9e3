// Both executors, and what each alone promises.

#include <sys/resource.h>

#include <cfenv>
#include <cstdlib>
#include <fstream>

#include "tests/core/helping_conformance.h"

namespace sluice {
namespace {

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest, testing::Values(Workers::kThreads, Workers::kSimulated),
                         &NameOf);

TEST(MakeExecutorTest, RefusesNoWorkers) {
  for (const int workers : {0, -1}) {
    const absl::Status status = MakeExecutor(workers).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

// Room for the stacks of some threads only.
[[noreturn]] void StartTooManyThreads() {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t limit = pages * 4096 + (rlim_t{40} << 20);
  const rlimit room{.rlim_cur = limit, .rlim_max = limit};
  const rlimit stack{.rlim_cur = 8 << 20, .rlim_max = 8 << 20};
  if (setrlimit(RLIMIT_AS, &room) != 0 || setrlimit(RLIMIT_STACK, &stack) != 0) std::_Exit(1);
  const absl::Status status = MakeExecutor(64).status();
  std::_Exit(absl::IsResourceExhausted(status) ? 0 : 2);
}

TEST(MakeExecutorDeathTest, ThreadsThatCannotBeStartedAreAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take address space of their own for each thread";
#endif
  EXPECT_EXIT(StartTooManyThreads(), testing::ExitedWithCode(0), "");
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

// Eight tasks of a second: by two workers each of two executors; on one core that these share; and
// with a caller who helps.
TEST(SimExecutorTest, CoresThatAreSharedAndCallersWhoHelp) {
  struct Second final : Task {
    void Run() override {}
    TaskCost cost() const override { return {TaskKind::kCopy, 1000}; }
  };
  SimWork work{.start = Nanos(0), .percent_min = 100, .percent_max = 100};
  work.per_second[static_cast<size_t>(TaskKind::kCopy)] = 2000;
  work.scale = 2;
  const auto seconds_of = [&](int cores, int helpers) {
    SimWorld world(1);
    SimWork shared = work;
    if (cores > 0) shared.cores = std::make_shared<SimCores>(cores);
    Second tasks[8];
    const auto one = MakeSimExecutor(&world, 2, shared), other = MakeSimExecutor(&world, 2, shared);
    one->SetHelpers(helpers);
    other->SetHelpers(helpers);
    for (size_t i = 0; i < 8; ++i) (i % 2 == 0 ? one : other)->Submit(&tasks[i]);
    while (world.RunNext(kForever)) {
    }
    return Seconds(world.Now());
  };
  EXPECT_DOUBLE_EQ(2, seconds_of(0, 0));
  EXPECT_DOUBLE_EQ(8, seconds_of(1, 0));
  EXPECT_DOUBLE_EQ(3, seconds_of(3, 0));
  EXPECT_DOUBLE_EQ(1, seconds_of(0, 2));
  EXPECT_DOUBLE_EQ(8, seconds_of(1, 2));
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

TEST(ScopedFlushDenormalsTest, RoundsToNearestWhateverTheCallerDoes) {
  volatile float one = 1.0f;
  volatile float third = 3.0f;
  const float nearest = one / third;
  const int before = std::fegetround();
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST}) {
    std::fesetround(mode);
    const float outside = one / third;
    float inside = 0;
    {
      const ScopedFlushDenormals flush;
      inside = one / third;
    }
    EXPECT_EQ(outside, one / third) << mode;
    std::fesetround(before);
    EXPECT_EQ(nearest, inside) << mode;
  }
}

}  // namespace
}  // namespace sluice
