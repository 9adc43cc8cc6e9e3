#include "offload/run/step_times.h"

#include <algorithm>
#include <utility>

namespace sluice {

void StepTimes::SetRates(const HardwareRates& rates, const FloorTerms& floor) {
  const std::lock_guard lock(mutex_);
  const int64_t kept = count_ - static_cast<int64_t>(kKept);
  for (int64_t n = std::max(count_at_rates_, kept); rates_ && n < count_; ++n) {
    std::optional<double>& before = steps_[static_cast<size_t>(n) % kKept].floor_seconds;
    before = std::min(before.value_or(floor.total), floor.total);
  }
  count_at_rates_ = count_;
  rates_ = rates;
  floor_ = floor;
  disturbed_ = true;
}

void StepTimes::Reset(TimePoint now) {
  const std::lock_guard lock(mutex_);
  count_ = count_at_rates_ = 0;
  called_.reset();
  disturbed_ = false;
  waited_ = {};
  since_ = now;
  first_.reset();
}

StepTimes::Figures StepTimes::figures() const {
  const std::lock_guard lock(mutex_);
  Figures figures{.count = count_,
                  .latest = {},
                  .rates = rates_,
                  .floor = floor_,
                  .waited = waited_,
                  .in_all = first_ ? last_ - *first_ : Nanos(0)};
  const int64_t kept = std::min(count_, static_cast<int64_t>(kKept));
  for (int64_t n = count_ - kept; n < count_; ++n)
    figures.latest.push_back(steps_[static_cast<size_t>(n) % kKept]);
  return figures;
}

void StepTimes::Stepped(TimePoint called) {
  const std::lock_guard lock(mutex_);
  ActiveLocked(called);
  const std::optional<TimePoint> before = std::exchange(called_, called);
  if (std::exchange(disturbed_, false) || !before) return;
  steps_[static_cast<size_t>(count_++) % kKept] = {
      .took = called - *before,
      .floor_seconds = rates_ ? std::optional(floor_.total) : std::nullopt};
}

void StepTimes::Active(TimePoint at) {
  const std::lock_guard lock(mutex_);
  ActiveLocked(at);
}

void StepTimes::ActiveLocked(TimePoint at) {
  if (!first_) first_ = last_ = at;
  last_ = std::max(last_, at);
}

void StepTimes::WaitsFor(std::optional<WaitedFor> what, TimePoint now) {
  const std::optional<WaitedFor> before = std::exchange(waits_for_, what);
  if (!before && !what) return;
  const std::lock_guard lock(mutex_);
  if (before) {
    ActiveLocked(since_);
    waited_[static_cast<size_t>(*before)] += now - since_;
  }
  ActiveLocked(now);
  since_ = now;
}

}  // namespace sluice
