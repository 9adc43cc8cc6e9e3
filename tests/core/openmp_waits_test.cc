// With libgomp, where it is installed: it is loaded for the test, and not linked.

#include "core/openmp_waits.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

namespace sluice {
namespace {

using ::testing::HasSubstr;

int Cores() { return static_cast<int>(std::thread::hardware_concurrency()); }

size_t Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

class OpenMpWaitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (dlopen("libgomp.so.1", RTLD_NOW) == nullptr) GTEST_SKIP() << dlerror();
  }
};

TEST_F(OpenMpWaitsTest, TheRuntimesThreadsSleepAsLongAsItLives) {
  const size_t before = Threads();
  for (int round = 0; round < 3; ++round) {
    const auto waits = OpenMpWaits::MakeShort(Cores(), Cores());
    EXPECT_TRUE(waits->all_short()) << waits->description();
    EXPECT_THAT(waits->description(), HasSubstr("libgomp.so.1: threads sleep"));
    EXPECT_GT(Threads(), before);
    const auto another = OpenMpWaits::MakeShort(Cores(), Cores());
    EXPECT_TRUE(another->all_short());
  }
}

// Too few threads for what the runtime counts: it goes on to spin, and that is said.
TEST_F(OpenMpWaitsTest, WhetherTheySleepIsTried) {
  if (Cores() < 2) GTEST_SKIP() << "on one core no team spins";
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) GTEST_SKIP() << "somebody has decided it";
  const auto waits = OpenMpWaits::MakeShort(0, 0);
  EXPECT_FALSE(waits->all_short());
  EXPECT_THAT(waits->description(), HasSubstr("may spin"));
}

// Room for stacks of another size is not tried: libgomp would end the process where there is none.
TEST_F(OpenMpWaitsTest, StacksOfAnotherSizeAreLeftAlone) {
  for (const char* name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
    ASSERT_EQ(0, setenv(name, "1G", 1));
    const auto waits = OpenMpWaits::MakeShort(Cores(), Cores());
    unsetenv(name);
    EXPECT_FALSE(waits->all_short());
    EXPECT_THAT(waits->description(), HasSubstr("since OMP_STACKSIZE is set"));
  }
  EXPECT_TRUE(OpenMpWaits::MakeShort(Cores(), Cores())->all_short());
}

// A mask that was narrowed after the runtime was loaded.
TEST_F(OpenMpWaitsTest, AMaskThatWasNarrowedIsNoMatter) {
  EXPECT_TRUE(OpenMpWaits::MakeShort(0, Cores())->all_short());
}

// libgomp would end the process.
[[noreturn]] void WithoutRoomForThreads() {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t limit = pages * 4096 + (rlim_t{40} << 20);
  const rlimit room{.rlim_cur = limit, .rlim_max = limit};
  if (setrlimit(RLIMIT_AS, &room) != 0) std::_Exit(1);
  std::_Exit(OpenMpWaits::MakeShort(64, 64)->all_short() ? 2 : 0);
}

TEST_F(OpenMpWaitsTest, ThreadsThatCannotBeStartedAreNoHarm) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take address space of their own for each thread";
#endif
  EXPECT_EXIT(WithoutRoomForThreads(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sluice
