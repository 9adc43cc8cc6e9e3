// core/work_queue.h
//
// What threads that carry out one thing after the other wait on: a first-come, first-served list
// with a mutex, and an end. Elements are of the kind that IntrusiveList takes, and not owned. Some
// come for good (Pop); visitors take elements while they wait for something else (PopUnless).
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_CORE_WORK_QUEUE_H_
#define SLUICE_CORE_WORK_QUEUE_H_

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "core/intrusive_list.h"

namespace sluice {

template <typename T>
class WorkQueue {
 public:
  void Push(T* element) {
    bool for_visitors = false;
    {
      const std::lock_guard lock(mutex_);
      list_.Push(element);
      for_visitors = ++size_ <= visitors_asleep_;  // a visitor has a core that is free
    }
    (for_visitors ? visited_ : changed_).notify_one();
  }

  // Waits for the next element; null when there is none and Stop was called.
  T* Pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || !list_.empty(); });
    return list_.empty() ? nullptr : Take();
  }

  // Waits for the next element too; null as soon as `done()`, which is asked again after
  // WakeVisitors and must not use the queue, and at `deadline`.
  template <typename Done>
  T* PopUnless(const Done& done, std::chrono::steady_clock::time_point deadline) {
    std::unique_lock lock(mutex_);
    bool late = false;
    while (!late && !done()) {
      if (!list_.empty()) return Take();
      ++visitors_asleep_;
      late = visited_.wait_until(lock, deadline) == std::cv_status::timeout;
      --visitors_asleep_;
    }
    if (!list_.empty()) changed_.notify_one();  // it may have been left to this visitor
    return nullptr;
  }

  // What a visitor waits for may have come.
  void WakeVisitors() {
    { const std::lock_guard lock(mutex_); }  // whoever has asked before is asleep by now
    visited_.notify_all();
  }

  // Forgets what was pushed and not taken; returns how much that was.
  size_t Drop() {
    const std::lock_guard lock(mutex_);
    size_t dropped = 0;
    for (; !list_.empty(); ++dropped) Take();
    return dropped;
  }

  // Lets those who wait go when what was pushed is taken. Nothing is pushed afterwards.
  void Stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
  }

 private:
  T* Take() {
    --size_;
    return list_.Pop();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable visited_;
  IntrusiveList<T> list_;       // guarded by mutex_
  size_t size_ = 0;             // of list_; guarded by mutex_
  size_t visitors_asleep_ = 0;  // guarded by mutex_
  bool stopping_ = false;       // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_CORE_WORK_QUEUE_H_
