// The oracle is sorting.

#include "core/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "tests/core/seeds.h"

namespace sluice {
namespace {

constexpr double kShares[] = {0, 0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1};

int64_t BySorting(std::vector<int64_t> values, double share) {
  std::ranges::sort(values);
  const double place = std::ceil(share * static_cast<double>(values.size()));
  return values[static_cast<size_t>(std::max(1.0, place)) - 1];
}

void ExpectAsSorted(const Histogram& histogram, const std::vector<int64_t>& values) {
  EXPECT_EQ(histogram.count(), static_cast<int64_t>(values.size()));
  EXPECT_EQ(histogram.max(), *std::ranges::max_element(values));
  for (const double share : kShares) {
    const int64_t exact = BySorting(values, share);
    const int64_t off = std::abs(histogram.Percentile(share) - exact);
    EXPECT_LE(off, exact / 32) << "share " << share << " is " << exact;
  }
  EXPECT_EQ(histogram.Percentile(1), histogram.max());
}

TEST(HistogramTest, EmptyIsZero) {
  const auto histogram = std::make_unique<Histogram>();
  EXPECT_EQ(histogram->count(), 0);
  EXPECT_EQ(histogram->max(), 0);
  EXPECT_EQ(histogram->sum(), 0);
  for (const double share : kShares) EXPECT_EQ(histogram->Percentile(share), 0);
}

TEST(HistogramTest, SmallValuesAreExact) {
  const auto histogram = std::make_unique<Histogram>();
  for (int64_t v = -3; v < 32; ++v) histogram->Add(v);
  std::vector<int64_t> values(35);
  std::iota(values.begin(), values.end(), -3);
  for (int64_t& v : values) v = std::max<int64_t>(v, 0);
  for (const double share : kShares) {
    EXPECT_EQ(histogram->Percentile(share), BySorting(values, share)) << share;
  }
  EXPECT_EQ(histogram->sum(), 31 * 32 / 2);
}

// Around every power of two, up to the largest there is: a lone value, which no larger one bounds.
TEST(HistogramTest, EveryValueIsWithinA32nd) {
  for (int bit = 0; bit < 63; ++bit) {
    for (const int64_t around : {-1, 0, 1}) {
      const int64_t value = static_cast<int64_t>(uint64_t{1} << bit) + around;
      const auto histogram = std::make_unique<Histogram>();
      histogram->Add(value);
      histogram->Add(std::numeric_limits<int64_t>::max());
      EXPECT_LE(std::abs(histogram->Percentile(0.5) - value), value / 32) << value;
    }
  }
}

TEST(HistogramTest, PercentilesAreThoseOfSorting) {
  for (const uint64_t seed : Seeds(200)) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto histogram = std::make_unique<Histogram>();
    std::vector<int64_t> values;
    const size_t count = 1 + random() % 500;
    const auto bits = static_cast<int>(random() % 62);
    for (size_t i = 0; i < count; ++i) {
      values.push_back(static_cast<int64_t>(random() >> (1 + random() % (1 + bits))));
      histogram->Add(values.back());
    }
    ExpectAsSorted(*histogram, values);
  }
}

TEST(HistogramTest, MergedCopiedAndAssignedAreAsIfAdded) {
  std::vector<int64_t> values;
  const auto a = std::make_unique<Histogram>();
  const auto b = std::make_unique<Histogram>();
  std::mt19937_64 random(5);
  for (int i = 0; i < 1000; ++i) {
    values.push_back(static_cast<int64_t>(random() % 1'000'000));
    (i % 3 == 0 ? *a : *b).Add(values.back());
  }
  a->Merge(*b);
  ExpectAsSorted(*a, values);
  EXPECT_EQ(a->sum(), std::accumulate(values.begin(), values.end(), int64_t{0}));
  ExpectAsSorted(*std::make_unique<Histogram>(*a), values);
  *b = *a;
  ExpectAsSorted(*b, values);
  const Histogram& self = *b;
  *b = self;
  ExpectAsSorted(*b, values);
  b->Reset();
  EXPECT_EQ(b->count() + b->max() + b->sum() + b->Percentile(0.5), 0);
}

TEST(HistogramThreadsTest, ManyThreadsAddAndLook) {
  const auto histogram = std::make_unique<Histogram>();
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&histogram, t] {
      for (int64_t i = 0; i < 5000; ++i) {
        histogram->Add(i * 4 + t);
        EXPECT_LE(histogram->max(), 19'999);
        if (i % 500 == 0) {
          EXPECT_LE(histogram->Percentile(0.5), 20'000);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<int64_t> values(20'000);
  std::iota(values.begin(), values.end(), 0);
  ExpectAsSorted(*histogram, values);
}

}  // namespace
}  // namespace sluice
