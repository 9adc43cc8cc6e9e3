#include "core/metrics.h"

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

std::map<std::string, int64_t> Metrics::Snapshot() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, int64_t> values;
  for (const auto& [name, counter] : counters_) values[name] = counter->value();
  return values;
}

void Metrics::Reset() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, counter] : counters_) counter->Set(0);
}

}  // namespace sluice
