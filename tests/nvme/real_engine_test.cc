// What only engines that talk to a kernel can meet: its errors, its limits, and its short
// transfers.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "nvme/io_engine.h"
#include "tests/nvme/engine_fixture.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class RealEngineTest : public EngineFixture {
 protected:
  // Makes file 1 be what lies at `path`.
  bool Replace(const char* path, int flags) {
    const int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return false;
    SLUICE_CHECK(dup3(fd, files_[1].fd(), O_CLOEXEC) >= 0);
    close(fd);
    return true;
  }

  // `bad` fails, and what goes on beside it in the other file doesn't.
  void RunBesideGood(IoOp* bad) {
    std::vector<IoOp> ops(3);
    for (size_t i = 0; i < ops.size(); ++i) {
      ops[i] = Op(IoKind::kWrite, 0, static_cast<int64_t>(i << 16),
                  arena_.view().subspan(i << 16, 1 << 16));
    }
    ops[1] = *bad;
    RunAll(ops);
    EXPECT_TRUE(ops[0].status.ok()) << ops[0].status;
    EXPECT_TRUE(ops[2].status.ok()) << ops[2].status;
    *bad = ops[1];
    EXPECT_FALSE(bad->status.ok());
    EXPECT_LT(bad->transferred.size(), bad->memory.size());
  }

  MemoryView Memory(size_t size) { return arena_.view().subspan(4 << 20, size); }
};

INSTANTIATE_TEST_SUITE_P(All, RealEngineTest,
                         testing::Values(EngineName::kIoUring, EngineName::kLibaio,
                                         EngineName::kThreads),
                         NameOf);

TEST_P(RealEngineTest, NoSpaceIsNamed) {
  if (!Replace("/dev/full", O_RDWR)) GTEST_SKIP() << "no /dev/full";
  if (GetParam() == EngineName::kLibaio) GTEST_SKIP() << "libaio can't write to /dev/full";
  Start();
  IoOp bad = Op(IoKind::kWrite, 1, 8192, Memory(4096));
  RunBesideGood(&bad);
  EXPECT_TRUE(absl::IsResourceExhausted(bad.status));
  EXPECT_THAT(std::string(Message(bad.status)),
              AllOf(HasSubstr("writing 4096 bytes at 8192 of swap file 1"), HasSubstr(dir_.path()),
                    HasSubstr("ENOSPC")));
}

TEST_P(RealEngineTest, AFileThatCantBeWrittenIsNamed) {
  ASSERT_TRUE(Replace("/dev/null", O_RDONLY));
  Start();
  IoOp bad = Op(IoKind::kWrite, 1, 0, Memory(4096));
  RunBesideGood(&bad);
  EXPECT_THAT(std::string(Message(bad.status)),
              AllOf(HasSubstr("swap file 1"), HasSubstr("EBADF")));
}

TEST_P(RealEngineTest, AWriteIsResumedUpToTheLimitThatStopsIt) {
  Start();
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit low = old;
  low.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  IoOp bad = Op(IoKind::kWrite, 1, (1 << 20) - (32 << 10), Memory(64 << 10));
  RunBesideGood(&bad);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(bad.transferred, KiB(32));
  EXPECT_THAT(std::string(Message(bad.status)),
              AllOf(HasSubstr("swap file 1"), HasSubstr("EFBIG")));
}

TEST_P(RealEngineTest, AFileThatWasCutIsAnError) {
  ASSERT_EQ(ftruncate(files_[1].fd(), 1 << 20), 0);
  Start();
  IoOp bad = Op(IoKind::kRead, 1, (1 << 20) - 8192, Memory(64 << 10));
  RunBesideGood(&bad);
  EXPECT_EQ(bad.transferred, KiB(8));
  EXPECT_TRUE(absl::IsDataLoss(bad.status));
  EXPECT_THAT(std::string(Message(bad.status)), HasSubstr("after 8192 bytes"));
}

// Files of /proc return about a page at a time.
TEST_P(RealEngineTest, ShortReadsAreResumed) {
  constexpr size_t kSize = 64 << 10;
  std::string expected(kSize, '\0');
  if (!std::ifstream("/proc/kallsyms").read(expected.data(), kSize)) {
    GTEST_SKIP() << "no large file in /proc";
  }
  ASSERT_TRUE(Replace("/proc/kallsyms", O_RDONLY));
  if (GetParam() == EngineName::kLibaio) GTEST_SKIP() << "libaio can't read files of /proc";
  Start();
  IoOp op = Op(IoKind::kRead, 1, 0, Memory(kSize));
  RunOne(&op);
  ASSERT_TRUE(op.status.ok()) << op.status;
  EXPECT_TRUE(SameBytes(op.memory, std::as_bytes(std::span(expected))));
}

TEST_P(RealEngineTest, WhatCloseWaitedForIsInTheFile) {
  Start();
  FillRandom(arena_.view().first(4 << 20), 11);
  std::vector<IoOp> ops;
  std::vector<IoOp*> todo;
  for (size_t i = 0; i < 4; ++i) {
    ops.push_back(Op(IoKind::kWrite, 0, static_cast<int64_t>(i << 20),
                     arena_.view().subspan(i << 20, 1 << 20)));
  }
  for (IoOp& op : ops) todo.push_back(&op);
  ASSERT_EQ(engine_->Submit(todo), 4u);
  ASSERT_TRUE(engine_->Close().ok());
  const MemoryView found = Memory(4 << 20);
  ASSERT_EQ(pread(files_[0].fd(), found.data(), found.size(), 0),
            static_cast<ssize_t>(found.size()));
  EXPECT_TRUE(SameBytes(found, arena_.view().first(4 << 20)));
}

TEST_P(RealEngineTest, AnEngineWithoutFilesWaits) {
  files_.clear();
  Start();
  std::vector<IoOp*> done(1);
  const Deadline deadline = steady_.Now() + Nanos(1'000'000);
  EXPECT_EQ(engine_->Poll(done, deadline), 0u);
  EXPECT_GE(steady_.Now(), deadline);
  engine_->Wake();
  EXPECT_EQ(engine_->Poll(done, kForever), 0u);
}

TEST(MakeIoEngineTest, RefusesLimitsOfNothing) {
  SteadyClock clock;
  for (const IoEngine::Limits& limits :
       {IoEngine::Limits{.in_flight_max = 0}, {.submit_batch_max = 0}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        MakeIoEngine(IoEngineKind::kAuto, {}, {}, limits, &clock).status()));
  }
}

TEST(MakeIoEngineTest, FallsBackToThreadsAndSaysWhy) {
  SteadyClock clock;
  // A ring takes a file descriptor, threads don't.
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  rlimit none = old;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto chosen = MakeIoEngine(IoEngineKind::kAuto, {}, {}, {}, &clock);
  const auto ring = MakeIoEngine(IoEngineKind::kIoUring, {}, {}, {}, &clock);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_THAT((*chosen)->description(), AllOf(StartsWith("threads"), HasSubstr("no io_uring: ")));
  EXPECT_FALSE(ring.ok());
  EXPECT_THAT(Message(ring.status()), HasSubstr("setting up io_uring"));
}

// In a child, which gives up the privilege of locking memory without limit.
TEST(MakeIoEngineTest, WorksWithoutRegisteredBuffersAndSaysWhy) {
  constexpr int kNoRing = 3;
  TempDir dir;
  std::vector<DirectFile> files;
  absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir.path(), MiB(1));
  ASSERT_TRUE(file.ok()) << file.status();
  files.push_back(*std::move(file));
  AlignedBuffer buffer(32 << 20);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit low{.rlim_cur = 64 << 10, .rlim_max = 64 << 10};
    if (setrlimit(RLIMIT_MEMLOCK, &low) != 0) _exit(4);
    if (geteuid() == 0 && seteuid(65534) != 0) _exit(5);
    SteadyClock clock;
    const MemoryView arenas[] = {buffer.view()};
    const auto engine = MakeIoEngine(IoEngineKind::kIoUring, files, arenas, {}, &clock);
    if (!engine.ok()) _exit(kNoRing);
    const std::string text = (*engine)->description();
    if (text.find("buffers not registered (ENOMEM; see ulimit -l)") == std::string::npos) _exit(6);
    IoOp op;
    op.kind = IoKind::kWrite;
    op.memory = buffer.view().first(1 << 20);
    IoOp* todo[] = {&op};
    if ((*engine)->Submit(todo) != 1) _exit(7);
    while ((*engine)->Poll(todo, kForever) == 0) {
    }
    _exit(op.status.ok() ? 0 : 8);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoRing) GTEST_SKIP() << "no io_uring for users here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace sluice
