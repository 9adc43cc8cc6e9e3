// Tables of a framework's that are not as they should be. (What works: the suites over all
// communicators.)

#include "comm/supplied.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "tests/comm/comm_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

// A framework whose functions do as the test says.
struct Framework {
  int32_t start_result = SLUICE_COMM_ENDED;
  int32_t wait_result = SLUICE_COMM_ENDED;
  const char* message = "";
  const char* awaited = "";  // said while it is pending
  std::string told;          // by the last abort
  int pending = 0;           // so many times wait says that it has not ended
  std::atomic<bool> fails_once_aborted{false};
  std::atomic<int> aborts{0};
  std::atomic<int> closes{0};
  std::atomic<bool> aborted_when_closed{false};
  std::function<void(const sluice_comm_call&)> on_start;
  std::vector<int> ends_when_started;  // by operation: not before so many were started
  std::atomic<int> started{0};
  int under_way_max = 0;
  std::vector<sluice_comm_call> calls;

  static int32_t Said(const char* text, int32_t result, char* error, size_t bytes) {
    std::strncpy(error, text, bytes);  // not terminated if it is too long
    return result;
  }
  int32_t Say(int32_t result, char* error, size_t bytes) const {
    return Said(message, result, error, bytes);
  }
  sluice_comm_table table() {
    return {.struct_size = sizeof(sluice_comm_table),
            .context = this,
            .rank = 1,
            .ranks = 3,
            .start = [](void* context, const sluice_comm_call* call, uint64_t operation,
                        char* error, size_t bytes) -> int32_t {
              auto* const self = static_cast<Framework*>(context);
              EXPECT_EQ(self->calls.size(), operation);
              self->calls.push_back(*call);
              if (self->on_start != nullptr) self->on_start(*call);
              ++self->started;
              self->started.notify_all();
              return self->Say(self->start_result, error, bytes);
            },
            .wait = [](void* context, uint64_t operation, int32_t, char* error,
                       size_t bytes) -> int32_t {
              auto* const self = static_cast<Framework*>(context);
              if (operation < self->ends_when_started.size()) {
                int seen;
                while ((seen = self->started) < self->ends_when_started[operation])
                  self->started.wait(seen);
                self->under_way_max = std::max(self->under_way_max, seen - int(operation));
              }
              if (self->fails_once_aborted)
                return self->aborts > 0 ? self->Say(SLUICE_COMM_FAILED, error, bytes)
                                        : Said(self->awaited, SLUICE_COMM_PENDING, error, bytes);
              if (self->pending-- > 0) return SLUICE_COMM_PENDING;
              return self->Say(self->wait_result, error, bytes);
            },
            .abort =
                [](void* context, const char* why) {
                  auto* const self = static_cast<Framework*>(context);
                  self->told = why;
                  ++self->aborts;
                  std::this_thread::yield();  // as a framework that takes its time
                  if (self->closes > 0) self->aborted_when_closed = true;
                },
            .close = [](void* context) { ++static_cast<Framework*>(context)->closes; },
            .description = "a framework"};
  }
};

class SuppliedTest : public testing::Test {
 protected:
  void Make(const CommOptions& options = {}) {
    communicator_ = MakeSuppliedCommunicator(framework_.table(), options, &clock_).value();
  }
  void Enqueue(TestOp* op) {
    op->SetSegments();
    op->op.inbox = waiting_.inbox();
    op->op.event = op;
    op->counter = &counter_;
    communicator_->Enqueue(&op->op);
  }
  absl::Status Run(CommKind kind = CommKind::kBarrier) {
    TestOp op;
    op.op.kind = kind;
    Enqueue(&op);
    waiting_.HandleUntil([&] { return op.ended; });
    return op.op.status;
  }

  SteadyClock clock_;
  WaitingInbox waiting_;
  int counter_ = 0;
  Framework framework_;
  std::unique_ptr<Communicator> communicator_;
};

TEST_F(SuppliedTest, WaitsUntilItHasEnded) {
  framework_.pending = 5;
  Make();
  EXPECT_TRUE(Run().ok());
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(2u, framework_.calls.size());
  EXPECT_THAT(communicator_->description(), HasSubstr("a framework"));
  EXPECT_TRUE(communicator_->Close().ok());
  communicator_.reset();
  EXPECT_EQ(1, framework_.closes);
  EXPECT_EQ(0, framework_.aborts);
}

TEST_F(SuppliedTest, AnErrorIsPassedOnAndTheOthersAreTold) {
  const std::string long_text(2000, 'x');
  for (const bool starts : {false, true}) {
    for (const char* message : {"", "no such communicator", long_text.c_str()}) {
      framework_.aborts = 0;
      framework_.calls.clear();
      framework_.message = message;
      framework_.start_result = starts ? SLUICE_COMM_ENDED : SLUICE_COMM_FAILED;
      framework_.wait_result = starts ? 77 : SLUICE_COMM_ENDED;  // whatever is no result failed
      Make();
      const absl::Status status = Run();
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1: barrier: "));
      EXPECT_THAT(std::string(Message(status)),
                  HasSubstr(*message == '\0' ? "does not say why" : std::string(message, 10)));
      EXPECT_EQ(1, framework_.aborts);
      EXPECT_EQ(status, Run());
      EXPECT_EQ(status, communicator_->Close());
    }
  }
}

TEST_F(SuppliedTest, WhatItNeverDoesIsNoFailure) {
  framework_.message = "no barriers here";
  framework_.start_result = SLUICE_COMM_UNSUPPORTED;
  Make();
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_EQ("rank 1: barrier: no barriers here", Message(status));
  EXPECT_EQ(1, framework_.aborts);
  EXPECT_EQ(status, communicator_->Close());
}

TEST_F(SuppliedTest, TheDeadlineAborts) {
  framework_.fails_once_aborted = true;
  Make({.timeout = std::chrono::milliseconds(20)});
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(Message(status)), HasSubstr("one of the ranks 0, 2, and has for 0.02 s"));
  EXPECT_EQ(1, framework_.aborts);
  EXPECT_EQ(Message(status), framework_.told);
  EXPECT_EQ(status, communicator_->status());
}

// It may know which rank is missing, and, once the deadline has passed, who is the cause.
TEST_F(SuppliedTest, TheFrameworksWordsCountMoreThanThoseOfTheDeadline) {
  for (const char* message : {"", "rank 2: has no power"}) {
    framework_.aborts = 0;
    framework_.calls.clear();
    framework_.fails_once_aborted = true;
    framework_.awaited = "rank 0";
    framework_.message = message;
    Make({.timeout = std::chrono::milliseconds(20)});
    const absl::Status status = Run();
    EXPECT_THAT(framework_.told, HasSubstr("rank 1 waits in barrier for rank 0, and has for"));
    EXPECT_THAT(std::string(Message(status)), HasSubstr(*message == '\0' ? "for rank 0" : message));
    EXPECT_EQ(*message == '\0', absl::IsDeadlineExceeded(status)) << status;
    EXPECT_EQ(1, framework_.aborts);
    EXPECT_EQ(status, communicator_->Close());
  }
}

// Each look at it takes a second.
class HastyClock final : public Clock {
 public:
  TimePoint Now() const override { return TimePoint(std::chrono::seconds(++looks_)); }

 private:
  mutable std::atomic<int64_t> looks_{0};
};

// What was under way is lost; what was not started is as it was.
TEST_F(SuppliedTest, AFrameworkThatNeverEndsIsGivenUp) {
  HastyClock hasty;
  framework_.pending = 1'000'000;
  framework_.ends_when_started = {2};
  communicator_ =
      MakeSuppliedCommunicator(framework_.table(),
                               {.timeout = std::chrono::seconds(1000), .in_flight = 2}, &hasty)
          .value();
  std::deque<TestOp> ops(4);
  for (TestOp& op : ops) Enqueue(&op);
  waiting_.HandleUntil([&] { return ops.back().ended; });
  for (size_t i = 0; i < ops.size(); ++i) {
    const CommOp& op = ops[i].op;
    EXPECT_TRUE(absl::IsDeadlineExceeded(op.status)) << op.status;
    EXPECT_EQ(i < framework_.calls.size(), op.memory_lost) << i;
    EXPECT_EQ(op.memory_lost,
              Message(op.status).find("may still be in use") != std::string_view::npos);
  }
  EXPECT_EQ(2u, framework_.calls.size());
  EXPECT_EQ(1, framework_.aborts);
  EXPECT_TRUE(communicator_->memory_lost());
  communicator_.reset();
}

TEST_F(SuppliedTest, SomeOperationsAreStartedBeforeTheFirstHasEnded) {
  for (const int in_flight : {1, 2, 3, 7}) {
    constexpr int kCalls = 20;
    framework_.calls.clear();
    framework_.started = framework_.under_way_max = 0;
    framework_.ends_when_started.clear();
    for (int i = 0; i < kCalls; ++i)
      framework_.ends_when_started.push_back(std::min(i + in_flight, kCalls));
    Make({.in_flight = static_cast<uint32_t>(in_flight)});
    std::deque<TestOp> ops(kCalls);
    for (size_t i = 0; i < ops.size(); ++i) {
      ops[i].op.tag = i;
      Enqueue(&ops[i]);
    }
    waiting_.HandleUntil([&] { return ops.back().ended; });
    for (size_t i = 0; i < ops.size(); ++i) {
      EXPECT_TRUE(ops[i].op.status.ok()) << ops[i].op.status;
      EXPECT_EQ(i, framework_.calls[i].tag);
      EXPECT_EQ(static_cast<int>(i), ops[i].order - ops[0].order);
    }
    EXPECT_EQ(in_flight, framework_.under_way_max);
    EXPECT_TRUE(communicator_->Close().ok());
  }
}

TEST_F(SuppliedTest, TheTableSeesHowEachRanksPartIsCut) {
  Make();
  Data data(64);
  TestOp op;
  op.op.kind = CommKind::kAllToAll;
  op.op.tag = 0xFEDC'BA98'7654'3210;
  const MemoryView all(data);
  op.send = {all.subspan(0, 4), all.subspan(4, 6), all.subspan(10, 5)};
  op.send_ends = {0, 2, 3};
  op.receive = {all.subspan(20, 10)};
  op.receive_ends = {0, 1, 1};
  framework_.on_start = [&](const sluice_comm_call& call) {
    EXPECT_EQ(sizeof(call), call.struct_size);
    EXPECT_EQ(op.op.tag, call.tag);
    ASSERT_EQ(3u, call.send.count);
    ASSERT_EQ(1u, call.receive.count);
    EXPECT_EQ(op.send_ends, std::vector<uint32_t>(call.send.ends, call.send.ends + 3));
    EXPECT_EQ(op.receive_ends, std::vector<uint32_t>(call.receive.ends, call.receive.ends + 3));
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(op.send[i].data(), call.send.buffers[i].data);
      EXPECT_EQ(op.send[i].size(), call.send.buffers[i].bytes);
    }
    EXPECT_EQ(op.receive[0].data(), call.receive.buffers[0].data);
    EXPECT_EQ(10u, call.receive.buffers[0].bytes);
  };
  Enqueue(&op);
  waiting_.HandleUntil([&] { return op.ended; });
  EXPECT_TRUE(op.op.status.ok()) << op.op.status;
  framework_.on_start = nullptr;
  Run(CommKind::kBarrier).IgnoreError();
  EXPECT_EQ(nullptr, framework_.calls.back().send.ends);
}

TEST_F(SuppliedTest, CloseIsTheLastCallWhoeverAborts) {
  for (int i = 0; i < 300; ++i) {
    framework_.closes = 0;
    Make();
    std::thread other([this] { communicator_->Abort(absl::AbortedError("by another thread")); });
    (void)communicator_->Close();
    other.join();
    EXPECT_EQ(1, framework_.closes);
    EXPECT_FALSE(framework_.aborted_when_closed);
    communicator_.reset();
  }
}

TEST_F(SuppliedTest, ATableThatLacksSomethingIsRefused) {
  const auto refused = [&](const char* text, auto&& change) {
    sluice_comm_table table = framework_.table();
    change(&table);
    const absl::Status status = MakeSuppliedCommunicator(table, {}, &clock_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(Message(status)), HasSubstr(text));
  };
  refused("struct_size", [](sluice_comm_table* t) { t->struct_size = 8; });
  refused("start", [](sluice_comm_table* t) { t->start = nullptr; });
  refused("wait", [](sluice_comm_table* t) { t->wait = nullptr; });
  refused("abort", [](sluice_comm_table* t) { t->abort = nullptr; });
  refused("ranks must be", [](sluice_comm_table* t) { t->ranks = 0; });
  refused("ranks must be", [](sluice_comm_table* t) { t->ranks = kRanksMax + 1; });
  refused("rank must be", [](sluice_comm_table* t) { t->rank = 3; });
  sluice_comm_table table = framework_.table();
  table.close = nullptr;
  table.description = nullptr;
  const auto made = MakeSuppliedCommunicator(table, {}, &clock_);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE((*made)->Close().ok());
}

}  // namespace
}  // namespace sluice
