#include "comm/communicator.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr Nanos kLongestWait = std::chrono::hours(1);  // of the condition variable, at a time

// SplitMix64's (Steele, Lea & Flood 2014) last steps: every bit of what comes out depends on every
// bit of what goes in.
uint64_t Mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

const char* Name(CommKind kind) {
  static constexpr std::array<const char*, kCommKindCount> kNames = {
      "all-gather", "reduce-scatter", "all-reduce", "broadcast",
      "all-to-all", "send",           "receive",    "barrier"};
  return kNames[static_cast<size_t>(kind)];
}

void Communicator::Enqueue(CommOp* op) {
  SLUICE_CHECK(op->inbox != nullptr && op->event != nullptr);
  const std::string wrong = WrongViews(*op, rank_, ranks_);
  SLUICE_CHECK_MSG(wrong.empty(), wrong);
  op->sizes_ = sizer_.SizesOf(*op);
  op->memory_lost = false;
  {
    const std::lock_guard lock(mutex_);
    ++pending_;
    if (!IsPointToPoint(op->kind)) {
      history_ = Mixed(history_ + 0x9E3779B97F4A7C15u + static_cast<uint64_t>(op->kind));
      history_ = Mixed(history_ + op->tag);
    }
  }
  if (closed_) return End(op, status());
  Start(op);
}

void Communicator::Abort(const absl::Status& why) {
  SLUICE_CHECK(!why.ok());
  {
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    status_ = why;
    interrupting_ = true;
  }
  // Also if the thread is ended in there, as an interpreter's may be: who closes waits for this.
  const absl::Cleanup over = [this] {
    const std::lock_guard lock(mutex_);
    interrupting_ = false;
    idle_.notify_all();
  };
  Interrupt(why);
}

absl::Status Communicator::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

size_t Communicator::pending() const {
  const std::lock_guard lock(mutex_);
  return pending_;
}

bool Communicator::memory_lost() const {
  const std::lock_guard lock(mutex_);
  return memory_lost_;
}

CommCounts Communicator::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

uint64_t Communicator::history() const {
  const std::lock_guard lock(mutex_);
  return history_;
}

void Communicator::LetEnd(Nanos longest) {
  if (AwaitIdle(longest)) return;
  Abort(absl::CancelledError(
      fmt::format("rank {} was closed with {} operations pending", rank_.value(), pending())));
}

absl::Status Communicator::Close() {
  if (closed_) return close_status_;
  LetEnd(options_.close_timeout);
  while (!AwaitIdle(kLongestWait)) {
  }
  closed_ = true;
  {
    std::unique_lock lock(mutex_);
    // What an Abort has to tell the others is said before this one leaves.
    idle_.wait(lock, [this] { return !interrupting_; });
    close_status_ = status_;
    if (status_.ok())
      status_ = absl::CancelledError(fmt::format("rank {} is closed", rank_.value()));
  }
  Leave();
  return close_status_;
}

bool Communicator::Break(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  if (!status_.ok()) return false;
  status_ = why;
  return true;
}

void Communicator::End(CommOp* op, const absl::Status& status) {
  op->status = status;
  op->finished = clock_->Now();
  {
    const std::lock_guard lock(mutex_);
    memory_lost_ |= op->memory_lost;
    if (status.ok()) {
      CommCount& count = counts_[static_cast<size_t>(op->kind)];
      ++count.operations;
      count.sent += SentBytes(*op, ranks_);
      count.received += ReceivedBytes(*op, ranks_);
    } else if (status_.ok()) {
      status_ = status;
    }
    if (--pending_ == 0) idle_.notify_all();
  }
  op->inbox->Post(op->event);
}

bool Communicator::AwaitIdle(Nanos longest) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::min(longest, kLongestWait), [this] { return pending_ == 0; });
}

}  // namespace sluice
