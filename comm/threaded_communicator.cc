#include "comm/threaded_communicator.h"

#include <pthread.h>

#include <system_error>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

ThreadedCommunicator::~ThreadedCommunicator() { SLUICE_CHECK(closed_ || !thread_.joinable()); }

absl::Status ThreadedCommunicator::StartThread() {
  try {
    thread_ = std::thread([this] { Work(); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(
        fmt::format("the thread of rank {} can't be started: {}", rank().value(), e.what()));
  }
  return absl::OkStatus();
}

absl::Status ThreadedCommunicator::Close() {
  if (closed_) return close_status_;
  if (!AwaitIdle(options_.close_timeout)) {
    Abort(absl::CancelledError(
        fmt::format("rank {} was closed with {} operations pending", rank().value(), pending())));
  }
  queue_.Stop();
  if (thread_.joinable()) thread_.join();
  closed_ = true;
  close_status_ = status();
  Break(absl::CancelledError(fmt::format("rank {} is closed", rank().value())));
  Leave();
  return close_status_;
}

void ThreadedCommunicator::Start(CommOp* op) {
  if (closed_) return End(op, status(), clock_->Now());
  queue_.Push(op);
}

void ThreadedCommunicator::Work() {
  pthread_setname_np(pthread_self(), "sluice-comm");
  while (CommOp* op = queue_.Pop()) {
    op->started = clock_->Now();
    absl::Status status = this->status();
    if (status.ok()) {
      const Deadline deadline =
          options_.timeout > kForever - op->started ? kForever : op->started + options_.timeout;
      status = CarryOut(op, deadline);
    }
    End(op, status, clock_->Now());
  }
}

}  // namespace sluice
