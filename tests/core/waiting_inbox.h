// tests/core/waiting_inbox.h
//
// An inbox whose owner can wait for it, in real time or, given a world, in virtual time: what a
// control thread is to the seams.

#ifndef SLUICE_TESTS_CORE_WAITING_INBOX_H_
#define SLUICE_TESTS_CORE_WAITING_INBOX_H_

#include <condition_variable>
#include <functional>
#include <mutex>

#include "core/event.h"
#include "core/sim_world.h"
#include "core/status.h"

namespace sluice {

class WaitingInbox final : public Waker {
 public:
  explicit WaitingInbox(SimWorld* world = nullptr) : world_(world) { inbox_.SetWaker(this); }

  void Wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    changed_.notify_one();
  }

  // Handles what comes until `done`.
  void HandleUntil(const std::function<bool()>& done) {
    while (!done()) {
      if (inbox_.HandleAll()) continue;
      if (world_ != nullptr) {
        SLUICE_CHECK_MSG(world_->RunNext(kForever), "nothing more will happen");
        continue;
      }
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return woken_; });
      woken_ = false;
    }
  }

  Inbox* inbox() { return &inbox_; }

 private:
  SimWorld* const world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;  // guarded by mutex_
  Inbox inbox_;
};

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_WAITING_INBOX_H_
