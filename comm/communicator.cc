#include "comm/communicator.h"

#include "comm/local_ops.h"
#include "core/status.h"

namespace sluice {

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
  {
    const std::lock_guard lock(mutex_);
    ++pending_;
  }
  Start(op);
}

void Communicator::Abort(const absl::Status& why) {
  SLUICE_CHECK(!why.ok());
  if (Break(why)) Interrupt(why);
}

absl::Status Communicator::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

size_t Communicator::pending() const {
  const std::lock_guard lock(mutex_);
  return pending_;
}

CommCounts Communicator::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

bool Communicator::Break(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  if (!status_.ok()) return false;
  status_ = why;
  return true;
}

void Communicator::End(CommOp* op, const absl::Status& status, TimePoint now) {
  op->status = status;
  op->finished = now;
  {
    const std::lock_guard lock(mutex_);
    if (status.ok()) {
      CommCount& count = counts_[static_cast<size_t>(op->kind)];
      ++count.operations;
      count.sent += SentBytes(*op, rank_, ranks_);
      count.received += ReceivedBytes(*op, rank_, ranks_);
    } else if (status_.ok()) {
      status_ = status;
    }
    if (--pending_ == 0) idle_.notify_all();
  }
  op->inbox->Post(op->event);
}

bool Communicator::AwaitIdle(Nanos longest) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, longest, [this] { return pending_ == 0; });
}

}  // namespace sluice
