// offload/run/closing.h
//
// How a runtime ends in bounded time, whatever hangs: it is handed over to its control thread,
// which takes it down, and whoever closes it waits for that only so long. What hangs keeps the
// control thread, and with it all that a late completion may touch: nothing is freed before its
// last user has ended.
//
// Threads: HandOver and Wait on the closer's, the rest on the control thread. Outlives the runtime:
// both share it.

#ifndef SLUICE_OFFLOAD_RUN_CLOSING_H_
#define SLUICE_OFFLOAD_RUN_CLOSING_H_

#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "core/clock.h"

namespace sluice {

class Closing {
 public:
  // From now on the runtime is the control thread's, which `tell` tells so. The control thread
  // takes nothing down before `tell` has returned.
  template <typename Tell>
  void HandOver(Tell tell) {
    const std::lock_guard lock(mutex_);
    handed_over_ = true;
    tell();
  }
  bool handed_over() const;

  // What is being taken down now, in words that stay. Allocates nothing: also a runtime that could
  // not be made, for want of memory, is taken down.
  void Enter(std::string_view part);
  void GiveUp(std::string hanging);  // all is taken down but this, which may never end
  void Keep(std::string what);       // this is not given back, for ever; the rest is
  void Finish();                     // nothing else is left

  // Waits until everything is taken down, or given up, for at most so long. Errors: Unavailable
  // naming what hangs, and what that means for the caller.
  absl::Status Wait(Nanos at_most) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool handed_over_ = false;  // guarded by mutex_, all of these
  bool given_up_ = false;
  bool finished_ = false;
  std::string hanging_;    // of GiveUp
  std::string kept_;       // of Keep
  std::string_view part_;  // of Enter
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CLOSING_H_
