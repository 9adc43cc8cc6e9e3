#include "core/metrics.h"

#include "core/status.h"

namespace sluice {

void Counter::SetMax(int64_t n) {
  int64_t seen = value();
  while (seen < n && !value_.compare_exchange_weak(seen, n, std::memory_order_relaxed)) {
  }
}

Counter* Metrics::Get(std::string_view name) {
  const std::lock_guard lock(mutex_);
  const auto it = counters_.find(name);
  if (it != counters_.end()) return it->second.get();
  return counters_.emplace(std::string(name), std::make_unique<Counter>()).first->second.get();
}

Histogram* Metrics::GetTimes(std::string_view name) {
  const std::lock_guard lock(mutex_);
  const auto it = times_.find(name);
  if (it != times_.end()) return it->second.get();
  return times_.emplace(std::string(name), std::make_unique<Histogram>()).first->second.get();
}

const Histogram& Metrics::Times(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = times_.find(name);
  SLUICE_CHECK(it != times_.end());
  return *it->second;
}

std::map<std::string, int64_t> Metrics::Snapshot() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, int64_t> values;
  for (const auto& [name, counter] : counters_) values[name] = counter->value();
  return values;
}

void Metrics::Reset() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, counter] : counters_) counter->Set(0);
  for (const auto& [name, times] : times_) times->Reset();
}

}  // namespace sluice
