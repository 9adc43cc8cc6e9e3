// With libgomp, where it is installed: it is loaded for the test, and not linked.

#include "core/openmp_waits.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <link.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

int Cores() { return static_cast<int>(std::thread::hardware_concurrency()); }

std::unique_ptr<OpenMpWaits> Make(int cores, int cores_most) {
  return OpenMpWaits::Make(cores, cores_most, OpenMpWaits::Mode::kSleep);
}

size_t Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

class OpenMpWaitsTest : public ::testing::Test {
 protected:
  // The kernel counts threads a moment after they have ended, so those of the test before too.
  static inline size_t alone = 0;
  static void SetUpTestSuite() { alone = Threads(); }
  void SetUp() override {
    if (dlopen("libgomp.so.1", RTLD_NOW) == nullptr) GTEST_SKIP() << dlerror();
  }
};

TEST_F(OpenMpWaitsTest, TheRuntimesThreadsSleepAsLongAsItLives) {
  const size_t before = Threads();
  for (int round = 0; round < 3; ++round) {
    const auto waits = Make(Cores(), Cores());
    EXPECT_TRUE(waits->all_short()) << waits->description();
    EXPECT_THAT(waits->description(), HasSubstr("libgomp.so.1: threads sleep"));
    EXPECT_GT(Threads(), before);
    const auto another = Make(Cores(), Cores());
    EXPECT_TRUE(another->all_short());
  }
}

// Too few threads for what the runtime counts: it goes on to spin, and that is said.
TEST_F(OpenMpWaitsTest, WhetherTheySleepIsTried) {
  if (Cores() < 2) GTEST_SKIP() << "on one core no team spins";
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) GTEST_SKIP() << "somebody has decided it";
  const auto waits = Make(0, 0);
  EXPECT_FALSE(waits->all_short());
  EXPECT_THAT(waits->description(), HasSubstr("may spin"));
}

// Room for stacks of another size is not tried: libgomp would end the process where there is none.
TEST_F(OpenMpWaitsTest, StacksOfAnotherSizeAreLeftAlone) {
  for (const char* name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
    ASSERT_EQ(0, setenv(name, "1G", 1));
    const auto waits = Make(Cores(), Cores());
    unsetenv(name);
    EXPECT_FALSE(waits->all_short());
    EXPECT_THAT(waits->description(), HasSubstr("since OMP_STACKSIZE is set"));
  }
  EXPECT_TRUE(Make(Cores(), Cores())->all_short());
}

// A mask that was narrowed after the runtime was loaded.
TEST_F(OpenMpWaitsTest, AMaskThatWasNarrowedIsNoMatter) {
  EXPECT_TRUE(Make(0, Cores())->all_short());
}

// How much of a core a thread takes that waits some milliseconds for the other of its team: the
// least and the most of some tries. Others that run can only take time from one that spins.
struct Taken {
  std::chrono::nanoseconds least = std::chrono::seconds(1);
  std::chrono::nanoseconds most{};
};
Taken TakenByAWait() {
  struct Late {
    static void Run(void* argument) {
      auto* const late = static_cast<Late*>(argument);
      if (std::this_thread::get_id() == late->beginner) {
        late->before = Now();
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    static std::chrono::nanoseconds Now() {
      timespec now{};
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
      return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
    }
    std::thread::id beginner = std::this_thread::get_id();
    std::chrono::nanoseconds before{};
  };
  void* const library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(
      dlsym(library, "GOMP_parallel"));
  Taken taken;
  std::thread([&] {  // its team ends with it
    for (int i = 0; i < 20; ++i) {
      Late late;
      parallel(&Late::Run, &late, 2, 0);
      const std::chrono::nanoseconds now = Late::Now() - late.before;
      taken = {std::min(taken.least, now), std::max(taken.most, now)};
    }
  })
      .join();
  dlclose(library);
  return taken;
}

TEST_F(OpenMpWaitsTest, ThreadsSpinAgainAndSleepAgain) {
  if (Cores() < 2) GTEST_SKIP() << "on one core no team spins";
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) GTEST_SKIP() << "somebody has decided it";
  constexpr std::chrono::microseconds kSpun(200);
  EXPECT_GT(TakenByAWait().most, kSpun);
  {
    const auto waits = Make(Cores(), Cores());
    for (int round = 0; round < 5; ++round) {
      EXPECT_LT(TakenByAWait().least, kSpun) << round;
      EXPECT_TRUE(waits->Spin(true));
      EXPECT_TRUE(waits->Spin(true));
      EXPECT_THAT(waits->description(), HasSubstr("spin where they wait"));
      EXPECT_GT(TakenByAWait().most, kSpun) << round;
      EXPECT_FALSE(waits->Spin(false));
      EXPECT_THAT(waits->description(), HasSubstr("threads sleep"));
    }
  }
  EXPECT_GT(TakenByAWait().most, kSpun);
  for (int i = 0; i < 100'000 && Threads() > alone; ++i) std::this_thread::yield();
  EXPECT_EQ(alone, Threads());
}

// Another one, by another name: a package that brings its own.
TEST_F(OpenMpWaitsTest, RuntimesThatAreLoadedLaterAreFound) {
  const auto waits = Make(Cores(), Cores());
  ASSERT_TRUE(waits->all_short());
  void* const library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_NOLOAD);
  link_map* map = nullptr;
  ASSERT_EQ(0, dlinfo(library, RTLD_DI_LINKMAP, &map));
  const TempDir directory;
  const std::string copy = directory.path() + "/libgomp-late.so.1";
  std::filesystem::copy_file(std::filesystem::canonical(map->l_name), copy);
  dlclose(library);
  ASSERT_NE(nullptr, dlopen(copy.c_str(), RTLD_NOW | RTLD_LOCAL)) << dlerror();
  while (waits->description().find(copy) == std::string::npos) std::this_thread::yield();
  EXPECT_THAT(waits->description(), HasSubstr(copy + ": threads sleep"));
  EXPECT_TRUE(waits->all_short());
  EXPECT_TRUE(waits->Spin(true));
  EXPECT_FALSE(waits->Spin(false));
}

// libgomp would end the process.
[[noreturn]] void WithoutRoomForThreads() {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t limit = pages * 4096 + (rlim_t{40} << 20);
  const rlimit room{.rlim_cur = limit, .rlim_max = limit};
  if (setrlimit(RLIMIT_AS, &room) != 0) std::_Exit(1);
  std::_Exit(Make(64, 64)->all_short() ? 2 : 0);
}

TEST_F(OpenMpWaitsTest, ThreadsThatCannotBeStartedAreNoHarm) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take address space of their own for each thread";
#endif
  EXPECT_EXIT(WithoutRoomForThreads(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sluice
