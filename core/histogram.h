// core/histogram.h
//
// How often which value came, for percentiles of times: a fixed number of buckets, 16 for each
// power of two, so that a percentile is within 1/32 of the value that sorting all of them gives,
// and exact below 32. Holds any int64_t; what is negative counts as 0.
//
// Threads: Add may be called from any thread, and everything may be read meanwhile (what comes in
// between may be in count() and not yet in max(), or the other way round). A copy holds what was
// counted by then. Reset and assignment belong to one thread, and an Add beside them may be half
// lost. Allocates nothing: an object takes 8 KiB, so put it into something on the heap.

#ifndef SLUICE_CORE_HISTOGRAM_H_
#define SLUICE_CORE_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sluice {

class Histogram {
 public:
  Histogram() = default;
  Histogram(const Histogram& other) { Merge(other); }
  Histogram& operator=(const Histogram& other);

  void Add(int64_t value);             // a few nanoseconds
  void Merge(const Histogram& other);  // as if all of its values were added here
  void Reset();

  int64_t count() const;
  int64_t sum() const { return sum_.load(std::memory_order_relaxed); }
  int64_t max() const { return max_.load(std::memory_order_relaxed); }  // exact; 0 if empty

  // The value that `share` (0 to 1) of all values don't exceed: of n values in order, the one at
  // place ceil(share * n), and at least the first. 0 if empty; Percentile(1) is max().
  int64_t Percentile(double share) const;

 private:
  // Buckets of width 1 up to 32; from there on each power of two has 16 of equal width.
  static constexpr int kSubBits = 4;
  static constexpr size_t kBuckets = (64 - kSubBits) << kSubBits;
  static size_t BucketOf(uint64_t value);
  static int64_t MiddleOf(size_t bucket);

  std::array<std::atomic<int64_t>, kBuckets> buckets_{};
  std::atomic<int64_t> sum_{0};
  std::atomic<int64_t> max_{0};
};

}  // namespace sluice

#endif  // SLUICE_CORE_HISTOGRAM_H_
