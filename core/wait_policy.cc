#include "core/wait_policy.h"

#include <algorithm>

namespace sluice {

namespace {

constexpr int64_t kSteps = 5;                              // that tell how long one takes
constexpr Nanos kWindow = std::chrono::milliseconds(500);  // or more of them
constexpr Nanos kTooLong = std::chrono::seconds(5);        // no tiny model's steps
constexpr int64_t kSleepsPerSecond = 5000;                 // at least, for spinning to pay
constexpr int kSlowWindows = 2;   // before a try: one may be slow for a reason of its own
constexpr double kPays = 0.9;     // of the time of a step before and after
constexpr double kSlower = 1.25;  // than at its best: it may not pay any more
constexpr size_t kLooks = 3;      // at least: the kernel counts in ticks
constexpr double kFewCores = 0.2, kFewOfCores = 0.03;  // the more of these: what goes on anyway
constexpr Nanos kPutOffFirst = std::chrono::seconds(2);
constexpr Nanos kPutOffMost = std::chrono::seconds(256);

Nanos Times(Nanos time, double factor) {
  return Nanos(static_cast<int64_t>(static_cast<double>(time.count()) * factor));
}

}  // namespace

bool WaitPolicy::Next(const WaitSample& sample) {
  if (!begun_) Begin(State::kSleeping, sample);
  begun_ = true;
  Look(sample);
  switch (state_) {
    case State::kSleeping:
      Sleeping(sample);
      break;
    case State::kComparing:
      Comparing(sample);
      break;
    case State::kTrying:
    case State::kSpinning:
      Spinning(sample);
      break;
  }
  return state_ == State::kTrying || state_ == State::kSpinning;
}

void WaitPolicy::Begin(State state, const WaitSample& sample) {
  if (state != state_) looks_ = 0;
  state_ = state;
  window_ = sample;
}

void WaitPolicy::Look(const WaitSample& sample) {
  if (!sample.cores) {
    looks_ = 0;
    return;
  }
  std::rotate(looked_.begin(), looked_.begin() + 1, looked_.end());
  looked_.back() = {sample.now, *sample.cores};
  looks_ = std::min(looks_ + 1, looked_.size());
}

// Whether others use cores, and leave none: while threads spin, none at all, and while they sleep,
// less than others have, since then these would be in the way.
bool WaitPolicy::OthersWant() const {
  if (looks_ < kLooks) return false;
  const Looked& first = looked_[looked_.size() - looks_];
  const Looked& last = looked_.back();
  const double time = Seconds(last.now - first.now);
  const double busy = Seconds(last.cores.busy - first.cores.busy) / time;
  const double others = busy - Seconds(last.cores.own - first.cores.own) / time;
  const double few = std::max(kFewCores, kFewOfCores * cores_);
  const bool spins = state_ == State::kTrying || state_ == State::kSpinning;
  return others > few && cores_ - busy < (spins ? few : others);
}

bool WaitPolicy::Enough(const WaitSample& sample) const {
  return sample.now - window_.now >= kWindow && sample.steps - window_.steps >= kSteps;
}

Nanos WaitPolicy::StepSince(const WaitSample& sample) const {
  return (sample.last_step - window_.last_step) /
         std::max<int64_t>(1, sample.steps - window_.steps);
}

void WaitPolicy::Sleeping(const WaitSample& sample) {
  const Nanos time = sample.now - window_.now;
  if (time > kTooLong || window_.steps == 0) {
    slow_windows_ = 0;
    return Begin(State::kSleeping, sample);
  }
  if (!Enough(sample)) return;
  const bool wakes_often =
      (sample.sleeps - window_.sleeps) > kSleepsPerSecond * time / std::chrono::seconds(1);
  const bool may_pay = wakes_often && sample.now >= not_before_ && !OthersWant();
  slow_ = slow_windows_ > 0 ? std::min(slow_, StepSince(sample)) : StepSince(sample);
  slow_windows_ = may_pay ? slow_windows_ + 1 : 0;
  if (slow_windows_ < kSlowWindows) return Begin(State::kSleeping, sample);
  slow_windows_ = 0;
  ++tries_;
  Begin(State::kTrying, sample);
}

void WaitPolicy::Spinning(const WaitSample& sample) {
  const bool trying = state_ == State::kTrying;
  const Nanos expected = trying ? slow_ : fast_;
  const Nanos time = sample.now - window_.now;
  if (OthersWant()) return GiveUp(sample);
  if (!Enough(sample)) {  // soon, where they take much longer
    if (time > std::max(kPeriod, 2 * (sample.steps - window_.steps + 2) * expected)) GiveUp(sample);
    return;
  }
  const Nanos step = StepSince(sample);
  if (step > Times(expected, trying ? kPays : kSlower)) return GiveUp(sample);
  fast_ = trying ? step : std::min(fast_, step);
  Begin(trying ? State::kComparing : State::kSpinning, sample);
}

void WaitPolicy::Comparing(const WaitSample& sample) {
  if (OthersWant() || sample.now - window_.now > kTooLong) return GiveUp(sample);
  if (!Enough(sample)) return;
  slow_ = std::min(slow_, StepSince(sample));
  if (fast_ > Times(slow_, kPays)) return GiveUp(sample);
  spinning_since_ = sample.now;
  Begin(State::kSpinning, sample);
}

void WaitPolicy::GiveUp(const WaitSample& sample) {
  const bool paid = state_ == State::kSpinning && sample.now - spinning_since_ > 4 * put_off_;
  put_off_ = paid ? kPutOffFirst : std::clamp(2 * put_off_, kPutOffFirst, kPutOffMost);
  not_before_ = sample.now + put_off_;
  Begin(State::kSleeping, sample);
}

}  // namespace sluice
