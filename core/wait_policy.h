// core/wait_policy.h
//
// Whether PyTorch's threads should spin where they wait for each other, or sleep. Sleeping is right
// as soon as anybody else wants their cores, and as a rule. It costs where regions take
// microseconds and nobody else is there: a core that went idle wakes up slowly.
//
// So spinning is tried, and kept if it pays: only while threads go to sleep thousands of times a
// second and others leave them the cores; for some steps, which must take less time than those
// before and those after; and until steps take longer again, or others are there: what the cores do
// beyond what this process does tells it within tenths of a second. A try that has failed puts off
// the next one, for longer each time.
//
// Pure: it is told what was counted, and when. Threads: one at a time.

#ifndef SLUICE_CORE_WAIT_POLICY_H_
#define SLUICE_CORE_WAIT_POLICY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/clock.h"
#include "core/core_times.h"

namespace sluice {

// What has been counted of this process until `now`.
struct WaitSample {
  Nanos now{};
  int64_t steps = 0;               // of training
  Nanos last_step{};               // when the last of them was taken
  int64_t sleeps = 0;              // how often threads gave their cores away
  std::optional<CoreTimes> cores;  // if WaitPolicy asks for it, and the kernel says
};

class WaitPolicy {
 public:
  static constexpr Nanos kPeriod = std::chrono::milliseconds(100);  // from one sample to the next

  // `cores` are this process's, as many as WaitSample::cores is about.
  explicit WaitPolicy(int cores) : cores_(cores) {}

  // Whether threads are to spin from now on. Sleeping, at first.
  bool Next(const WaitSample& sample);
  // Whether the next sample should say what the cores do, which takes time to find out.
  bool asks_for_cores() const { return state_ != State::kSleeping || slow_windows_ > 0; }

  int64_t tries() const { return tries_; }

 private:
  // Sleeping, two windows of it at least; a try; asleep once more, to compare; and spinning on.
  enum class State : uint8_t { kSleeping, kTrying, kComparing, kSpinning };
  struct Looked {
    Nanos now{};
    CoreTimes cores;
  };

  void Sleeping(const WaitSample& sample);
  void Spinning(const WaitSample& sample);
  void Comparing(const WaitSample& sample);
  void Begin(State state, const WaitSample& sample);
  void GiveUp(const WaitSample& sample);
  void Look(const WaitSample& sample);
  bool OthersWant() const;
  bool Enough(const WaitSample& sample) const;
  Nanos StepSince(const WaitSample& sample) const;  // time of one, since the window began

  const int cores_;
  State state_ = State::kSleeping;
  bool begun_ = false;
  WaitSample window_;             // since when is looked at
  std::array<Looked, 4> looked_;  // at the cores, in this state, the latest last
  size_t looks_ = 0;
  int slow_windows_ = 0;  // in a row, that may be compared with a try
  Nanos slow_{};          // a step with threads that sleep, at its best in these
  Nanos fast_{};          // and with threads that spin
  Nanos spinning_since_{};
  Nanos not_before_{};
  Nanos put_off_{};
  int64_t tries_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_CORE_WAIT_POLICY_H_
