// core/work_queue.h
//
// What threads that carry out one thing after the other wait on: a first-come, first-served list
// with a mutex, and an end. Elements are of the kind that IntrusiveList takes, and not owned.
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_CORE_WORK_QUEUE_H_
#define SLUICE_CORE_WORK_QUEUE_H_

#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "core/intrusive_list.h"

namespace sluice {

template <typename T>
class WorkQueue {
 public:
  void Push(T* element) {
    {
      const std::lock_guard lock(mutex_);
      list_.Push(element);
    }
    changed_.notify_one();
  }

  // Waits for the next element; null when there is none and Stop was called.
  T* Pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || !list_.empty(); });
    return list_.empty() ? nullptr : list_.Pop();
  }

  // Forgets what was pushed and not taken; returns how much that was.
  size_t Drop() {
    const std::lock_guard lock(mutex_);
    size_t dropped = 0;
    for (; !list_.empty(); ++dropped) list_.Pop();
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
  std::mutex mutex_;
  std::condition_variable changed_;
  IntrusiveList<T> list_;  // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_CORE_WORK_QUEUE_H_
