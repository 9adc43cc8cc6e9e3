#include "core/histogram.h"

#include <algorithm>
#include <cmath>

namespace sluice {

size_t Histogram::BucketOf(uint64_t value) {
  const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - (kSubBits + 1));
  return (static_cast<size_t>(shift) << kSubBits) + static_cast<size_t>(value >> shift);
}

int64_t Histogram::MiddleOf(size_t bucket) {
  if (bucket < (size_t{2} << kSubBits)) return static_cast<int64_t>(bucket);
  const size_t shift = (bucket >> kSubBits) - 1;
  const uint64_t low = (bucket - (shift << kSubBits)) << shift;
  return static_cast<int64_t>(low + (uint64_t{1} << shift) / 2);
}

Histogram& Histogram::operator=(const Histogram& other) {
  if (this == &other) return *this;
  Reset();
  Merge(other);
  return *this;
}

void Histogram::Add(int64_t value) {
  value = std::max<int64_t>(value, 0);
  buckets_[BucketOf(static_cast<uint64_t>(value))].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
  int64_t seen = max();
  while (seen < value && !max_.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

void Histogram::Merge(const Histogram& other) {
  for (size_t b = 0; b < kBuckets; ++b) {
    buckets_[b].fetch_add(other.buckets_[b].load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
  }
  sum_.fetch_add(other.sum(), std::memory_order_relaxed);
  max_.store(std::max(max(), other.max()), std::memory_order_relaxed);
}

void Histogram::Reset() {
  for (std::atomic<int64_t>& bucket : buckets_) bucket.store(0, std::memory_order_relaxed);
  sum_.store(0, std::memory_order_relaxed);
  max_.store(0, std::memory_order_relaxed);
}

int64_t Histogram::count() const {
  int64_t count = 0;
  for (const std::atomic<int64_t>& bucket : buckets_) {
    count += bucket.load(std::memory_order_relaxed);
  }
  return count;
}

int64_t Histogram::Percentile(double share) const {
  const int64_t all = count();
  const auto place =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(share * static_cast<double>(all))));
  if (place >= all) return max();
  int64_t before = 0;
  for (size_t b = 0; b < kBuckets; ++b) {
    before += buckets_[b].load(std::memory_order_relaxed);
    if (before >= place) return std::min(MiddleOf(b), max());
  }
  return max();
}

}  // namespace sluice
