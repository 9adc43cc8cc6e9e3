#include "comm/run_op.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "core/event.h"
#include "fmt/format.h"

namespace sluice {

namespace {

class Waiter final : private Waker, private Event {
 public:
  Waiter() { inbox_.SetWaker(this); }

  void Run(CommOp* op, Communicator* communicator, const int32_t* give_up) {
    op->inbox = &inbox_;
    op->event = this;
    communicator->Enqueue(op);
    bool looks = give_up != nullptr;
    while (!AwaitWaking(looks)) {
      if (__atomic_load_n(give_up, __ATOMIC_ACQUIRE) == 0) continue;
      looks = false;
      communicator->Abort(absl::UnavailableError(
          fmt::format("rank {} was told to give up", communicator->rank().value())));
    }
    inbox_.HandleAll();
  }

 private:
  // Whether it was woken; false only if it `looks` now and then.
  bool AwaitWaking(bool looks) {
    const auto woken = [this] { return is_woken_; };
    std::unique_lock lock(mutex_);
    if (looks) return woken_.wait_for(lock, std::chrono::milliseconds(50), woken);
    woken_.wait(lock, woken);
    return true;
  }
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

absl::Status RunOp(CommOp* op, Communicator* communicator, const int32_t* give_up) {
  Waiter().Run(op, communicator, give_up);
  return op->status;
}

}  // namespace sluice
