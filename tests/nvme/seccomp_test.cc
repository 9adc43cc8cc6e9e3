// The real kernel under a seccomp filter that forbids one system call, as containers do: found out
// when the engine is made, and survived if it comes later.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <tuple>

#include "core/status.h"
#include "nvme/io_engine.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

// From now on, and for what this process starts.
bool Forbid(int call, int error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = static_cast<unsigned short>(std::size(code)), .filter = code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

struct Case {
  const char* name;
  IoEngineKind kind;
  int call;
};
constexpr Case kCases[] = {
    {"io_uring_enter", IoEngineKind::kIoUring, SYS_io_uring_enter},
    {"io_uring_register", IoEngineKind::kIoUring, SYS_io_uring_register},
    {"io_uring_setup", IoEngineKind::kIoUring, SYS_io_uring_setup},
    {"io_submit", IoEngineKind::kLibaio, SYS_io_submit},
    {"io_getevents", IoEngineKind::kLibaio, SYS_io_getevents},
    {"io_setup", IoEngineKind::kLibaio, SYS_io_setup},
    {"ppoll", IoEngineKind::kLibaio, SYS_ppoll},
    {"eventfd2", IoEngineKind::kLibaio, SYS_eventfd2},
};
enum Verdict { kRight = 0, kNoFilter = 77, kNotMade, kWrongEngine, kNothingMoved };

class SeccompTest : public testing::TestWithParam<std::tuple<size_t, int>> {
 protected:
  const Case& which() const { return kCases[std::get<0>(GetParam())]; }
  int error() const { return std::get<1>(GetParam()); }

  auto Make(IoEngineKind kind) { return MakeIoEngine(kind, {&file_, 1}, {}, {}, &clock_); }

  // Writes until each operation has ended; how many did so without an error.
  int Write(IoEngine* engine) {
    int written = 0;
    for (int i = 0; i < 8; ++i) {
      IoOp op;
      op.kind = IoKind::kWrite;
      op.offset = FileOffset(4096 * i);
      op.memory = memory_.view();
      IoOp* ops[] = {&op};
      if (engine->Submit(ops) != 1) return -1;
      while (engine->Poll(ops, kForever) == 0) {
      }
      written += op.status.ok() ? 1 : 0;
    }
    return written;
  }

  // `in_child` in a process of its own, so that the filter ends with it.
  template <typename Body>
  void RunInChild(Body in_child) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      _exit(in_child());
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp filter can be set here";
    EXPECT_EQ(WEXITSTATUS(status), kRight);
  }

  TempDir dir_;
  DirectFile file_ = *DirectFile::CreateUnnamed(dir_.path(), MiB(1));
  AlignedBuffer memory_{4096};
  SteadyClock clock_;
};

std::string NameOf(const testing::TestParamInfo<std::tuple<size_t, int>>& info) {
  return std::string(kCases[std::get<0>(info.param)].name) + "_" +
         ErrnoName(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(All, SeccompTest,
                         testing::Combine(testing::Range(size_t{0}, std::size(kCases)),
                                          testing::Values(EPERM, ENOSYS, EACCES)),
                         NameOf);

TEST_P(SeccompTest, IsFoundOutWhenTheEngineIsMade) {
  if (!Make(which().kind).ok()) GTEST_SKIP() << "not here";
  RunInChild([&]() -> int {
    if (!Forbid(which().call, error())) return kNoFilter;
    const auto asked_for = Make(which().kind);
    if (asked_for.ok()) {  // it can do without
      if (Write(asked_for->get()) != 8) return kNothingMoved;
    } else if (Message(asked_for.status()).find(ErrnoName(error())) == std::string_view::npos) {
      return kWrongEngine;
    }
    const auto chosen = Make(IoEngineKind::kAuto);
    if (!chosen.ok()) return kNotMade;
    return Write(chosen->get()) == 8 ? kRight : kNothingMoved;
  });
}

TEST_P(SeccompTest, IsSurvivedWhenItComesLater) {
  if (!Make(which().kind).ok()) GTEST_SKIP() << "not here";
  RunInChild([&]() -> int {
    const auto engine = Make(which().kind);
    if (!engine.ok()) return kNotMade;
    if (!Forbid(which().call, error())) return kNoFilter;
    const int written = Write(engine->get());
    (*engine)->Wake();
    IoOp* none[1];
    if ((*engine)->Poll(none, kForever) != 0) return kWrongEngine;
    return written >= 0 && (*engine)->Close().ok() ? kRight : kNothingMoved;
  });
}

}  // namespace
}  // namespace sluice
