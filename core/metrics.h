// core/metrics.h
//
// Counters, gauges and histograms by name. A Counter or Histogram is found once, at start, and then
// costs a few relaxed additions. Snapshot may be taken from any thread at any time; its values are
// each exact and together nearly simultaneous.

#ifndef SLUICE_CORE_METRICS_H_
#define SLUICE_CORE_METRICS_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "core/histogram.h"

namespace sluice {

class Counter {
 public:
  void Add(int64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  void Set(int64_t n) { value_.store(n, std::memory_order_relaxed); }
  void SetMax(int64_t n);
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

class Metrics {
 public:
  // The counter of that name, made on first use; the pointer stays valid as long as this object.
  // Locks: not on the step path. Names end in their unit: "nvme_read_bytes",
  // "stall_param_fetch_ns".
  Counter* Get(std::string_view name);
  std::map<std::string, int64_t> Snapshot() const;
  // Likewise, of times: "acquire_ns". Not in the snapshot.
  Histogram* GetTimes(std::string_view name);
  const Histogram& Times(std::string_view name) const;  // that somebody has got (checked)
  void Reset();  // every counter to 0, and every histogram empty

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Counter>, std::less<>> counters_;
  std::map<std::string, std::unique_ptr<Histogram>, std::less<>> times_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_METRICS_H_
