// Every errno, at every call that engines make about their whole queue, once and for good, when the
// engine is made and later: operations end, with their bytes or with an error that has words, and
// nothing aborts, hangs or is lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "core/status.h"
#include "nvme/io_engine.h"
#include "tests/nvme/engine_fixture.h"
#include "tests/nvme/faulty_kernel.h"

namespace sluice {
namespace {

using Call = FaultyKernel::Call;

constexpr std::array kCallNames = {"Setup",    "Register",    "Enter", "IoSetup",
                                   "IoSubmit", "IoGetevents", "Ppoll", "Eventfd"};
constexpr int kErrnoMax = 133;
constexpr int kForGood = INT32_MAX;
constexpr size_t kOps = 6;
constexpr size_t kOpBytes = 4096;

constexpr int kShards = 8;

bool IoUrings(Call call) { return call < Call::kIoSetup; }
// What libaio says of a submission is about its first operation, which only these don't end.
bool Passes(Call call, int error) {
  return error == EINTR || error == EAGAIN ||
         (call != Call::kIoSubmit && (error == EBUSY || error == ENOMEM));
}

// Every errno, in several processes, since the kernel takes its time to give a queue back.
template <typename Body>
void ForEveryErrno(Body body) {
  std::vector<pid_t> children;
  for (int shard = 0; shard < kShards; ++shard) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    for (int error = 1 + shard; error <= kErrnoMax; error += kShards) body(error);
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "what failed is said above";
  }
}

class RefusingKernelTest : public testing::TestWithParam<Call> {
 protected:
  void SetUp() override {
    for (int i = 0; i < 2; ++i) {
      absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir_.path(), MiB(1));
      ASSERT_TRUE(file.ok()) << file.status();
      files_.push_back(*std::move(file));
    }
    kind_ = IoUrings(GetParam()) ? IoEngineKind::kIoUring : IoEngineKind::kLibaio;
    if (const auto engine = Make(kind_); !engine.ok()) GTEST_SKIP() << engine.status();
  }
  void TearDown() override { FaultyKernel::Reset(); }

  absl::StatusOr<std::unique_ptr<IoEngine>> Make(IoEngineKind kind) {
    const MemoryView arenas[] = {arena_.view()};
    return MakeIoEngine(
        kind, files_, arenas,
        {.in_flight_max = 4, .submit_batch_max = 2, .refused_max = std::chrono::milliseconds(150)},
        &clock_);
  }

  // Has all operations done, however they end, with failures from the `fail_at`-th Poll on (-1:
  // none). Checks that each is handed out once, and that what is called written is. Returns how
  // many failed.
  size_t Run(IoEngine* engine, int error, int times, int fail_at) {
    IoOp ops[kOps];
    std::vector<IoOp*> todo;
    for (size_t i = 0; i < kOps; ++i) {
      const MemoryView memory = arena_.view().subspan(i * kOpBytes, kOpBytes);
      FillRandom(memory, i + 1);
      ops[i].kind = IoKind::kWrite;
      ops[i].file = FileIndex(static_cast<uint32_t>(i % 2));
      ops[i].offset = FileOffset(static_cast<int64_t>(i * kOpBytes));
      ops[i].memory = memory;
      todo.push_back(&ops[i]);
    }
    size_t started = 0;
    std::set<IoOp*> ended;
    for (int polls = 0; ended.size() < kOps; ++polls) {
      if (polls == fail_at) FaultyKernel::FailCalls(GetParam(), error, times);
      started += engine->Submit(std::span(todo).subspan(started));
      IoOp* done[4];
      const size_t n = engine->Poll(done, kForever);
      for (size_t i = 0; i < n; ++i) EXPECT_TRUE(ended.insert(done[i]).second);
    }
    EXPECT_EQ(engine->in_flight(), 0u);
    engine->Wake();
    EXPECT_EQ(engine->Poll(todo, kForever), 0u);  // and it can still be woken
    size_t failed = 0;
    for (size_t i = 0; i < kOps; ++i) {
      if (ops[i].status.ok()) {
        AlignedBuffer found(kOpBytes);
        EXPECT_EQ(pread(files_[i % 2].fd(), found.view().data(), kOpBytes, ops[i].offset.value()),
                  static_cast<ssize_t>(kOpBytes));
        EXPECT_TRUE(SameBytes(found.view(), ops[i].memory));
        continue;
      }
      ++failed;
      EXPECT_THAT(std::string(Message(ops[i].status)),
                  testing::AllOf(testing::HasSubstr("writing 4096 bytes"),
                                 testing::HasSubstr(ErrnoName(error))));
    }
    return failed;
  }

  TempDir dir_;
  AlignedBuffer arena_{1 << 20};
  std::vector<DirectFile> files_;
  SteadyClock clock_;
  IoEngineKind kind_{};
};

std::string NameOf(const testing::TestParamInfo<Call>& info) {
  return kCallNames[static_cast<size_t>(info.param)];
}

class RefusingFromTheStartTest : public RefusingKernelTest {};
class RefusingLaterTest : public RefusingKernelTest {};
INSTANTIATE_TEST_SUITE_P(All, RefusingFromTheStartTest,
                         testing::Values(Call::kSetup, Call::kRegister, Call::kEnter,
                                         Call::kIoSetup, Call::kIoSubmit, Call::kIoGetevents,
                                         Call::kPpoll, Call::kEventfd),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(All, RefusingLaterTest,
                         testing::Values(Call::kEnter, Call::kIoSubmit, Call::kIoGetevents,
                                         Call::kPpoll),
                         NameOf);

TEST_P(RefusingFromTheStartTest, TheEngineIsRefusedOrWorksAndAnotherIsChosen) {
  ForEveryErrno([this](int error) {
    for (const int times : {1, kForGood}) {
      SCOPED_TRACE(testing::Message() << ErrnoName(error) << " " << times << " times");
      FaultyKernel::FailCalls(GetParam(), error, times);
      const auto asked_for = Make(kind_);
      FaultyKernel::FailCalls(GetParam(), error, times);
      if (!IoUrings(GetParam())) FaultyKernel::RefuseSetup(EPERM, 0);  // libaio is next
      const auto chosen = Make(IoEngineKind::kAuto);
      FaultyKernel::Reset();
      if (asked_for.ok()) {
        EXPECT_EQ(Run(asked_for->get(), error, 0, -1), 0u);
      } else {
        EXPECT_THAT(std::string(Message(asked_for.status())), testing::HasSubstr(ErrnoName(error)));
      }
      ASSERT_TRUE(chosen.ok()) << chosen.status();
      EXPECT_EQ(Run(chosen->get(), error, 0, -1), 0u);
      if (!asked_for.ok()) {
        EXPECT_THAT((*chosen)->description(), testing::HasSubstr(ErrnoName(error)));
      }
    }
  });
}

TEST_P(RefusingLaterTest, OperationsEndAndNothingIsLost) {
  ForEveryErrno([this](int error) {
    for (const int times : {1, kForGood}) {
      for (const int fail_at : {0, 1}) {
        SCOPED_TRACE(testing::Message() << ErrnoName(error) << " " << times << " times from the "
                                        << fail_at << "-th poll");
        auto engine = Make(kind_);
        ASSERT_TRUE(engine.ok()) << engine.status();
        const size_t failed = Run(engine->get(), error, times, fail_at);
        // What passes is tried again, and waits can do without ppoll.
        if ((times == 1 && Passes(GetParam(), error)) || GetParam() == Call::kPpoll) {
          EXPECT_EQ(failed, 0u);
        }
        const absl::Status closed = (*engine)->Close();
        EXPECT_TRUE(closed.ok()) << closed;
        FaultyKernel::Reset();
      }
    }
  });
}

// A context that the kernel neither asks nor gives back still writes to what was submitted to it.
class KeepingKernelTest : public RefusingKernelTest {};
INSTANTIATE_TEST_SUITE_P(Libaio, KeepingKernelTest, testing::Values(Call::kIoGetevents), NameOf);

TEST_P(KeepingKernelTest, WhatItKeepsStaysInFlightUntilItIsCompleted) {
  for (const int error : {EINTR, EINVAL, EPERM, ENOSYS}) {
    SCOPED_TRACE(ErrnoName(error));
    auto engine = Make(kind_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    FaultyKernel::FailCalls(GetParam(), EPERM, kForGood);
    FaultyKernel::RefuseDestroy(error);
    IoOp op;
    op.kind = IoKind::kWrite;
    op.memory = arena_.view().first(kOpBytes);
    IoOp* ops[] = {&op};
    ASSERT_EQ((*engine)->Submit(ops), 1u);
    for (int polls = 0; polls < 3; ++polls) EXPECT_EQ((*engine)->Poll(ops, kNoWait), 0u);
    EXPECT_EQ((*engine)->in_flight(), 1u);
    FaultyKernel::Reset();
    while ((*engine)->Poll(ops, kForever) == 0) {
    }
    EXPECT_TRUE(op.status.ok()) << op.status;
    EXPECT_EQ(op.transferred, Bytes(kOpBytes));
    EXPECT_TRUE((*engine)->Close().ok());
  }
}

TEST_P(KeepingKernelTest, AnEngineThatIsTriedOutIsKeptWithItsMemory) {
  FaultyKernel::FailCalls(GetParam(), EPERM, kForGood);
  FaultyKernel::RefuseDestroy(EINTR);
  const auto engine = Make(kind_);
  FaultyKernel::Reset();
  ASSERT_FALSE(engine.ok());
  EXPECT_THAT(std::string(Message(engine.status())), testing::HasSubstr("EPERM"));
}

}  // namespace
}  // namespace sluice
