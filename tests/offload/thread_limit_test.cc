// A runtime is made where threads can't be started: whichever is the one that is refused, that is
// an error with words, and what was started before ends.

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>

#include "core/status.h"
#include "offload/run/factory.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/smallest_budget.h"
#include "tests/offload/training.h"

namespace {

std::atomic<int> started{0};
std::atomic<int> refused_from{INT32_MAX};  // the first that is refused, from 0
std::atomic<bool> refused_once{false};     // or all from that one on

}  // namespace

// In front of the C library's, for this program and all that it has loaded.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*run)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto real = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  const int index = started++;
  if (refused_once ? index == refused_from : index >= refused_from) return EAGAIN;
  return real(thread, attributes, run, argument);
}

namespace sluice {
namespace {

constexpr int kCanDoWithout = 1;  // the first: it looks after OpenMP's waits

using ::testing::AnyOf;
using ::testing::HasSubstr;

size_t Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

class ThreadLimitTest : public ::testing::TestWithParam<IoEngineKind> {
 protected:
  void TearDown() override { refused_from = INT32_MAX; }

  absl::Status Create() {
    RuntimeConfig config;
    config.engine = GetParam();
    config.workers = 3;
    config.chunk_elements = 2 * kCellElements;
    config.nvme_paths = {dir_.path()};
    config.budgets = {MiB(64), MiB(1), MiB(64)};
    config.placement.state_buffers = 2;
    const auto runtime = MakeRuntime(::sluice::testing::OddModel(), config);
    return runtime.status();
  }

  TempDir dir_;
};

constexpr std::array kEngineNames = {"Auto", "IoUring", "Libaio", "Threads"};

std::string NameOf(const ::testing::TestParamInfo<IoEngineKind>& info) {
  return kEngineNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(All, ThreadLimitTest,
                         ::testing::Values(IoEngineKind::kThreads, IoEngineKind::kIoUring,
                                           IoEngineKind::kLibaio),
                         NameOf);

TEST_P(ThreadLimitTest, WhicheverIsRefusedIsAnError) {
  const absl::Status here = Create();
  if (absl::IsUnavailable(here) || absl::IsPermissionDenied(here)) GTEST_SKIP() << here;
  ASSERT_TRUE(here.ok()) << here;
  const size_t before = Threads();
  for (const bool once : {false, true}) {
    int n = once ? kCanDoWithout : 0;
    for (;; ++n) {
      started = 0;
      refused_once = once;
      refused_from = n;
      const absl::Status status = Create();
      refused_from = INT32_MAX;
      ASSERT_EQ(Threads(), before) << "after " << n;
      if (status.ok()) break;
      EXPECT_TRUE(absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(Message(status)), AnyOf(HasSubstr("threads can't be started"),
                                                      HasSubstr("thread can't be started")));
    }
    // Workers, the device's streams, the control thread, and what the engine has.
    EXPECT_GE(n, kCanDoWithout + 3 + 3 + 1 + (GetParam() == IoEngineKind::kThreads ? 4 : 0));
  }
}

// The kernel's own limit, which root doesn't have.
TEST_P(ThreadLimitTest, TheLimitOnProcessesIsAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers start threads of their own";
#endif
  if (geteuid() != 0) GTEST_SKIP() << "only root can become a user who has no other processes";
  const absl::Status here = Create();
  if (absl::IsUnavailable(here) || absl::IsPermissionDenied(here)) GTEST_SKIP() << here;
  std::filesystem::permissions(dir_.path(), std::filesystem::perms::all);
  for (rlim_t room = 1; room < 16; room += 2) {
    const pid_t child = fork();
    if (child == 0) {
      const rlimit limit{.rlim_cur = room, .rlim_max = room};
      constexpr uid_t kNobodyElse = 54321;
      if (setrlimit(RLIMIT_NPROC, &limit) != 0 || setuid(kNobodyElse) != 0) _exit(3);
      const absl::Status status = Create();
      _exit(status.ok()                                                        ? 0
            : absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ? 1
                                                                               : 2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "room for " << room << ": signal " << WTERMSIG(status);
    EXPECT_LE(WEXITSTATUS(status), 1) << "room for " << room;
    EXPECT_TRUE(room > 1 || WEXITSTATUS(status) == 1);
  }
}

}  // namespace
}  // namespace sluice
