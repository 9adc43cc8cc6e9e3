// Ranks that are processes, over the tests' own libnccl.so.2, which meet over a table as frameworks
// supply it; and what becomes of the others when one of them is killed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/nccl.h"
#include "comm/supplied.h"
#include "core/status.h"
#include "tests/comm/fake_nccl/fake_side_stream.h"
#include "tests/comm/fake_nccl/nccl_group.h"
#include "tests/comm/laid_out.h"
#include "tests/comm/socket_table.h"

namespace sluice {
namespace {

using testing::HasSubstr;

constexpr Nanos kNever = std::chrono::minutes(1);  // on a machine however busy

// One rank, in a process of its own.
class Process {
 public:
  Process(uint32_t rank, std::vector<int> sockets, const CommOptions& options)
      : rank_(rank), table_(rank, std::move(sockets)) {
    auto control = MakeSuppliedCommunicator(table_.table(), options, &clock_).value();
    communicator_ = MakeNcclCommunicator(FakeNcclLibrary(), std::move(control),
                                         MakeFakeSideStream(kFakeStaging), options, &clock_)
                        .value();
  }

  TestOp* Enqueue(LaidOut* exchange) {
    TestOp* const op = &ops_.emplace_back();
    exchange->Describe(rank_, op);
    op->SetSegments();
    op->op.inbox = waiting_.inbox();
    op->op.event = op;
    op->counter = &counter_;
    communicator_->Enqueue(&op->op);
    return op;
  }
  absl::Status Run(LaidOut* exchange) {
    const TestOp* const op = Enqueue(exchange);
    Await(op);
    return op->op.status;
  }
  void Await(const TestOp* op) {
    waiting_.HandleUntil([op] { return op->ended; });
  }
  // Which passes when NCCL has been told of it.
  void AwaitUntilTheDeadline(const TestOp* op) {
    while (OpenFakeNccl().Calls("ncclAllReduce") == 0) std::this_thread::yield();
    clock_.Leap(2 * kNever);
    Await(op);
  }
  absl::Status Close() { return communicator_->Close(); }

 private:
  const uint32_t rank_;
  LeapingClock clock_;
  SocketTable table_;
  WaitingInbox waiting_;
  int counter_ = 0;
  std::deque<TestOp> ops_;
  std::unique_ptr<Communicator> communicator_;
};

// `body(rank, sockets)` in a process for each rank. Those that write a byte to `ready` are killed
// then. Returns whether all others ended well, which they do within a minute.
class Processes {
 public:
  bool Run(uint32_t ranks, const std::function<void(uint32_t, std::vector<int>)>& body) {
    SocketMesh mesh(ranks);
    int pipes[2];
    SLUICE_CHECK(pipe(pipes) == 0);
    ready_ = pipes[1];
    std::vector<pid_t> pids;
    for (uint32_t r = 0; r < ranks; ++r) {
      std::fflush(nullptr);
      const pid_t pid = fork();
      SLUICE_CHECK(pid >= 0);
      if (pid == 0) {
        alarm(60);
        close(pipes[0]);
        body(r, mesh.Take(r));
        std::fflush(nullptr);
        _exit(testing::Test::HasFailure() ? 1 : 0);
      }
      pids.push_back(pid);
    }
    mesh.Close();
    close(pipes[1]);
    uint32_t killed = ranks;
    for (char rank; read(pipes[0], &rank, 1) == 1;) {
      killed = static_cast<uint32_t>(rank);
      kill(pids[killed], SIGKILL);
      waitpid(pids[killed], nullptr, 0);
    }
    close(pipes[0]);
    bool well = true;
    for (uint32_t r = 0; r < ranks; ++r) {
      int status = 0;
      if (r == killed) continue;
      waitpid(pids[r], &status, 0);
      well &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    return well;
  }
  // In a child: it is killed.
  void Die(uint32_t rank) const {
    const char byte = static_cast<char>(rank);
    SLUICE_CHECK(write(ready_, &byte, 1) == 1);
    while (true) pause();
  }
  // In a child that lives.
  void Live() const { close(ready_); }

 private:
  int ready_ = -1;
};

LaidOut AllReduce(uint32_t ranks) {
  return LaidOut(CommKind::kAllReduce, FloatType::kF32, std::vector(ranks, Layout::kWhole), 1000,
                 false);
}

TEST(NcclProcessesTest, EveryOperationOfEveryLayout) {
  using enum CommKind;
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    Processes processes;
    EXPECT_TRUE(processes.Run(ranks, [&](uint32_t rank, std::vector<int> sockets) {
      processes.Live();
      Process process(rank, std::move(sockets), {.timeout = kNever});
      for (const CommKind kind :
           {kAllGather, kReduceScatter, kAllReduce, kBroadcast, kAllToAll, kSend, kBarrier}) {
        if (kind == kSend && ranks == 1) continue;
        for (const FloatType type : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
          for (const Layout layout : kLayouts) {
            LaidOut exchange(kind, type, std::vector(ranks, layout), 2000, layout == Layout::kCut);
            if (!exchange.takes_part(rank)) continue;
            const absl::Status status = process.Run(&exchange);
            EXPECT_TRUE(status.ok()) << status;
            exchange.Check(rank);
          }
        }
      }
      EXPECT_TRUE(process.Close().ok());
      EXPECT_EQ(0, OpenFakeNccl().Communicators());
    }));
  }
}

// Between operations: the others name it when they need it.
TEST(NcclProcessesTest, AKilledRankIsNamed) {
  constexpr uint32_t kRanks = 3;
  for (uint32_t lost = 0; lost < kRanks; ++lost) {
    Processes processes;
    EXPECT_TRUE(processes.Run(kRanks, [&](uint32_t rank, std::vector<int> sockets) {
      if (rank != lost) processes.Live();
      Process process(rank, std::move(sockets), {.timeout = kNever});
      LaidOut exchange = AllReduce(kRanks);
      EXPECT_TRUE(process.Run(&exchange).ok());
      if (rank == lost) processes.Die(rank);
      absl::Status status;
      while (status.ok()) status = process.Run(&exchange);
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(Message(status)), HasSubstr(" is gone"));
      EXPECT_EQ(status, process.Close());
    }));
  }
}

// In the middle of one, whose GPU then waits for ever. NCCL says so, if it sees it; else ranks hear
// it where they meet for the next operation, if there is one; else there is the deadline.
TEST(NcclProcessesTest, ARankIsKilledInTheMiddleOfAnOperation) {
  constexpr uint32_t kRanks = 3, kLost = 1;
  enum class By { kNccl, kNext, kDeadline };
  for (const By by : {By::kNccl, By::kNext, By::kDeadline}) {
    Processes processes;
    EXPECT_TRUE(processes.Run(kRanks, [&](uint32_t rank, std::vector<int> sockets) {
      if (rank != kLost) processes.Live();
      if (by == By::kNccl) OpenFakeNccl().SetFaults("deaths=seen");
      Process process(rank, std::move(sockets), {.timeout = kNever});
      LaidOut exchange = AllReduce(kRanks);
      if (rank == kLost) {
        OpenFakeNccl().SetFaults("ncclAllReduce:1:never");
        process.Enqueue(&exchange);
        while (OpenFakeNccl().FaultsMet() == 0) std::this_thread::yield();
        processes.Die(rank);
      }
      const TestOp* const op = process.Enqueue(&exchange);
      LaidOut barrier(CommKind::kBarrier, FloatType::kF32, std::vector(kRanks, Layout::kWhole), 0,
                      false);
      const TestOp* const next = by == By::kNext ? process.Enqueue(&barrier) : nullptr;
      by == By::kDeadline ? process.AwaitUntilTheDeadline(op) : process.Await(op);
      const std::string message(Message(op->op.status));
      EXPECT_THAT(message, HasSubstr("rank "));
      const char* const texts[] = {"remote process exited", " is gone", "all-reduce of 4000 bytes"};
      EXPECT_THAT(message, HasSubstr(texts[static_cast<int>(by)]));
      EXPECT_EQ(by == By::kDeadline, absl::IsDeadlineExceeded(op->op.status)) << op->op.status;
      EXPECT_FALSE(op->op.memory_lost);
      if (next != nullptr) process.Await(next);
      EXPECT_FALSE(process.Close().ok());
      EXPECT_EQ(0, OpenFakeNccl().Communicators());
    }));
  }
}

}  // namespace
}  // namespace sluice
