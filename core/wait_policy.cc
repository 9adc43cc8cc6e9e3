#include "core/wait_policy.h"

#include <algorithm>

namespace sluice {

namespace {

constexpr int64_t kSteps = 5;                              // that tell how long one takes
constexpr Nanos kWindow = std::chrono::milliseconds(500);  // or more of them
constexpr Nanos kTooLong = std::chrono::seconds(5);        // no tiny model's steps
constexpr int64_t kSleepsPerSecond = 5000;                 // at least, for spinning to pay
constexpr double kWaitedMost = 0.2;  // of the time: more, and somebody wants the cores
constexpr double kPays = 0.9;        // of the time of a step before
constexpr double kSlower = 1.25;     // than at its best: it may not pay any more
constexpr Nanos kPutOffFirst = std::chrono::seconds(2);
constexpr Nanos kPutOffMost = std::chrono::seconds(256);

Nanos Times(Nanos time, double factor) {
  return Nanos(static_cast<int64_t>(static_cast<double>(time.count()) * factor));
}

}  // namespace

bool WaitPolicy::Next(const WaitSample& sample) {
  if (!begun_) Begin(State::kSleeping, sample);
  begun_ = true;
  state_ == State::kSleeping ? Sleeping(sample) : Spinning(sample);
  return state_ != State::kSleeping;
}

void WaitPolicy::Begin(State state, const WaitSample& sample) {
  state_ = state;
  window_ = sample;
}

Nanos WaitPolicy::StepSince(const WaitSample& sample) const {
  return (sample.last_step - window_.last_step) /
         std::max<int64_t>(1, sample.steps - window_.steps);
}

void WaitPolicy::Sleeping(const WaitSample& sample) {
  const Nanos time = sample.now - window_.now;
  if (time > kTooLong || window_.steps == 0) return Begin(State::kSleeping, sample);
  if (time < kWindow || sample.steps - window_.steps < kSteps) return;
  const bool wakes_often =
      (sample.sleeps - window_.sleeps) > kSleepsPerSecond * time / std::chrono::seconds(1);
  const bool cores_free = sample.waited - window_.waited < Times(time, kWaitedMost);
  slow_ = StepSince(sample);
  if (!wakes_often || !cores_free || sample.now < not_before_)
    return Begin(State::kSleeping, sample);
  ++tries_;
  Begin(State::kTrying, sample);
}

void WaitPolicy::Spinning(const WaitSample& sample) {
  const Nanos expected = state_ == State::kTrying ? slow_ : fast_;
  const Nanos time = sample.now - window_.now;
  const bool enough = time >= kWindow && sample.steps - window_.steps >= kSteps;
  // Soon, where they take much longer.
  if (!enough && time > std::max(kPeriod, 2 * (sample.steps - window_.steps + 2) * expected))
    return GiveUp(sample);
  if (!enough) return;
  const Nanos step = StepSince(sample);
  if (step > Times(expected, state_ == State::kTrying ? kPays : kSlower)) return GiveUp(sample);
  if (state_ == State::kTrying) spinning_since_ = sample.now;
  fast_ = state_ == State::kTrying ? step : std::min(fast_, step);
  Begin(State::kSpinning, sample);
}

void WaitPolicy::GiveUp(const WaitSample& sample) {
  const bool paid = state_ == State::kSpinning && sample.now - spinning_since_ > 4 * put_off_;
  put_off_ = paid ? kPutOffFirst : std::clamp(2 * put_off_, kPutOffFirst, kPutOffMost);
  not_before_ = sample.now + put_off_;
  Begin(State::kSleeping, sample);
}

}  // namespace sluice
