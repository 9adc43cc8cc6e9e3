// core/wait_policy.h
//
// Whether PyTorch's threads should spin where they wait for each other, or sleep. Sleeping is right
// as soon as anybody else wants their cores, and as a rule. It costs where regions take
// microseconds and nobody else is there: a core that went idle wakes up slowly.
//
// So spinning is tried, and kept if it pays: only while threads go to sleep thousands of times a
// second and hardly wait for cores; for some steps, whose time is compared with that of steps
// before; and until steps take longer again, for whatever reason. A try that has failed puts off
// the next one, for longer each time.
//
// Pure: it is told what was counted, and when. Threads: one at a time.

#ifndef SLUICE_CORE_WAIT_POLICY_H_
#define SLUICE_CORE_WAIT_POLICY_H_

#include <cstdint>

#include "core/clock.h"

namespace sluice {

// What has been counted of this process until `now`.
struct WaitSample {
  Nanos now{};
  int64_t steps = 0;   // of training
  Nanos last_step{};   // when the last of them was taken
  int64_t sleeps = 0;  // how often threads gave their cores away
  Nanos waited{};      // for cores, all threads
};

class WaitPolicy {
 public:
  static constexpr Nanos kPeriod = std::chrono::milliseconds(100);  // from one sample to the next

  // Whether threads are to spin from now on. Sleeping, at first.
  bool Next(const WaitSample& sample);

  int64_t tries() const { return tries_; }

 private:
  enum class State { kSleeping, kTrying, kSpinning };

  void Sleeping(const WaitSample& sample);
  void Spinning(const WaitSample& sample);
  void Begin(State state, const WaitSample& sample);
  void GiveUp(const WaitSample& sample);
  Nanos StepSince(const WaitSample& sample) const;  // time of one, since the window began

  State state_ = State::kSleeping;
  bool begun_ = false;
  WaitSample window_;  // since when is looked at
  Nanos slow_{};       // a step with threads that sleep
  Nanos fast_{};       // and with threads that spin
  Nanos spinning_since_{};
  Nanos not_before_{};
  Nanos put_off_{};
  int64_t tries_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_CORE_WAIT_POLICY_H_
