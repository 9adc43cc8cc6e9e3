#include "comm/run_op.h"

#include <condition_variable>
#include <mutex>

#include "core/event.h"

namespace sluice {

namespace {

class Waiter final : private Waker, private Event {
 public:
  Waiter() { inbox_.SetWaker(this); }

  void Run(CommOp* op, Communicator* communicator) {
    op->inbox = &inbox_;
    op->event = this;
    communicator->Enqueue(op);
    std::unique_lock lock(mutex_);
    woken_.wait(lock, [this] { return is_woken_; });
    inbox_.HandleAll();
  }

 private:
  // Under the mutex to its end: then this may go.
  void Wake() override {
    const std::lock_guard lock(mutex_);
    is_woken_ = true;
    woken_.notify_one();
  }
  void Handle() override {}

  Inbox inbox_;
  std::mutex mutex_;
  std::condition_variable woken_;
  bool is_woken_ = false;  // guarded by mutex_
};

}  // namespace

absl::Status RunOp(CommOp* op, Communicator* communicator) {
  Waiter().Run(op, communicator);
  return op->status;
}

}  // namespace sluice
