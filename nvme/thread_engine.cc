#include "nvme/thread_engine.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"
#include "nvme/finished_ops.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

constexpr uint32_t kThreadsMax = 4;

class ThreadEngine final : public IoEngine {
 public:
  ThreadEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock,
               std::string why)
      : files_(files), limits_(limits), clock_(clock), why_(std::move(why)) {}
  ~ThreadEngine() override { (void)Close(); }

  absl::Status Start() {
    if (files_.empty()) return absl::OkStatus();  // there is nothing to read or write
    try {
      while (threads_.size() < std::min(limits_.in_flight_max, kThreadsMax)) {
        threads_.emplace_back([this] { Work(); });
      }
    } catch (const std::system_error& e) {
      return absl::UnavailableError(fmt::format("I/O threads can't be started: {}", e.what()));
    }
    return absl::OkStatus();
  }

  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    const std::lock_guard lock(mutex_);
    for (; taken < ops.size() && in_flight_ < limits_.in_flight_max; ++taken) {
      IoOp* op = ops[taken];
      op->transferred = Bytes(0);
      op->submitted = clock_->Now();
      op->status = CheckOp(*op, files_);
      op->completed = op->submitted;
      ++in_flight_;
      op->status.ok() ? todo_.Push(op) : done_.Push(op);
    }
    return taken;
  }

  size_t Poll(std::span<IoOp*> done, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    const auto ready = [this] { return woken_ || !done_.empty(); };
    bool waited = true;
    if (deadline == kForever) {
      finished_.wait(lock, ready);
    } else if (deadline == kNoWait || clock_->Now() >= deadline) {
      waited = false;
    } else {
      finished_.wait_for(lock, deadline - clock_->Now(), ready);
    }
    if (waited && done_.empty()) woken_ = false;
    const size_t n = done_.HandOut(done);
    in_flight_ -= n;
    return n;
  }

  void Wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    finished_.notify_one();
  }

  size_t in_flight() const override {
    const std::lock_guard lock(mutex_);
    return in_flight_;
  }

  std::string description() const override {
    return fmt::format("threads: {} of pread and pwrite; {}", threads_.size(), why_);
  }

  absl::Status Close() override {
    todo_.Stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    in_flight_ -= done_.size();
    return done_.Drop();
  }

 private:
  void Work() {
    while (IoOp* op = todo_.Pop()) {
      Transfer(op);
      {
        const std::lock_guard lock(mutex_);
        done_.Push(op);
      }
      finished_.notify_one();
    }
  }

  void Transfer(IoOp* op) const {
    const int fd = files_[op->file.value()].fd();
    int retries = 0;
    int64_t result = 0;
    do {
      const Rest rest = RestOf(*op);
      const MemoryView at = rest.memory;
      result = op->kind == IoKind::kRead ? pread(fd, at.data(), at.size(), rest.offset.value())
                                         : pwrite(fd, at.data(), at.size(), rest.offset.value());
      if (result < 0) result = -errno;
    } while (GoesOn(op, result, files_, &retries));
    op->completed = clock_->Now();
  }

  const std::span<const DirectFile> files_;
  const Limits limits_;
  Clock* const clock_;
  const std::string why_;
  WorkQueue<IoOp> todo_;
  mutable std::mutex mutex_;
  std::condition_variable finished_;
  FinishedOps done_;  // these three guarded by mutex_
  size_t in_flight_ = 0;
  bool woken_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeThreadEngine(std::span<const DirectFile> files,
                                                           const IoEngine::Limits& limits,
                                                           Clock* clock, std::string why) {
  auto engine = std::make_unique<ThreadEngine>(files, limits, clock, std::move(why));
  SLUICE_RETURN_IF_ERROR(engine->Start());
  return engine;
}

}  // namespace sluice
