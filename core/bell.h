// core/bell.h
//
// A Waker for a thread that has nothing to do but wait: it sleeps until woken.
//
// Threads: Wake on any; the rest on the one that sleeps. It outlives who wakes it.

#ifndef SLUICE_CORE_BELL_H_
#define SLUICE_CORE_BELL_H_

#include <atomic>

#include "core/event.h"

namespace sluice {

class Bell final : public Waker {
 public:
  void Wake() override {
    rings_.fetch_add(1);
    rings_.notify_one();
  }
  // Until it has been woken more often than `seen`, which rings() has said before whatever is
  // waited for was looked at.
  void Wait(int seen) { rings_.wait(seen); }
  int rings() const { return rings_.load(); }

 private:
  std::atomic<int> rings_{0};
};

}  // namespace sluice

#endif  // SLUICE_CORE_BELL_H_
