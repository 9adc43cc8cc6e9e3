// core/metrics.h
//
// Counters and gauges by name. A Counter is found once, at start, and then costs one relaxed
// addition. Snapshot may be taken from any thread at any time; its values are each exact and
// together nearly simultaneous.

#ifndef SLUICE_CORE_METRICS_H_
#define SLUICE_CORE_METRICS_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

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
  void Reset();  // every counter to 0

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Counter>, std::less<>> counters_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_METRICS_H_
