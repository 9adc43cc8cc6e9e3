#include "comm/ordered_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "comm/ordered_reduce_reference.h"
#include "core/executor.h"
#include "core/float_bits.h"
#include "core/status.h"
#include "tests/comm/exchange.h"
#include "tests/core/targets.h"

namespace sluice {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};

Data RandomBits(size_t bytes, std::mt19937* random) {
  Data data(bytes);
  for (std::byte& byte : data) byte = static_cast<std::byte>((*random)());
  return data;
}

// Of magnitudes that are near each other now and then, so that sums cancel, round and overflow.
Data RandomValues(FloatType type, size_t n, std::mt19937* random) {
  const auto size = static_cast<size_t>(SizeOf(type));
  if ((*random)() % 4 == 0) return RandomBits(n * size, random);  // NaN, Inf, subnormals
  Data data(n * size);
  for (size_t i = 0; i < n; ++i) {
    const auto significand = static_cast<float>(static_cast<int32_t>((*random)()));
    const int scale = static_cast<int>((*random)() % 30) - 40;
    Put(type, std::ldexp(significand, scale), data.data() + i * size);
  }
  return data;
}

// Equal in bits; or both are NaN, of which none is promised.
void ExpectSame(FloatType type, const Data& expected, const Data& got) {
  ASSERT_EQ(expected.size(), got.size());
  const auto size = static_cast<size_t>(SizeOf(type));
  for (size_t at = 0; at < got.size(); at += size) {
    if (std::isnan(Get(type, expected.data() + at))) {
      ASSERT_TRUE(std::isnan(Get(type, got.data() + at))) << at / size;
    } else {
      ASSERT_EQ(0, std::memcmp(expected.data() + at, got.data() + at, size))
          << "element " << at / size << ": " << Get(type, expected.data() + at) << ", not "
          << Get(type, got.data() + at);
    }
  }
}

std::vector<const void*> Pointers(const std::vector<Data>& data, size_t offset = 0) {
  std::vector<const void*> pointers;
  for (const Data& one : data) pointers.push_back(one.data() + offset);
  return pointers;
}

TEST(OrderedSumTest, IsTheReferenceOnEveryTarget) {
  std::mt19937 random(1);
  for (const FloatType from_type : kTypes) {
    for (const FloatType to_type : kTypes) {
      for (const size_t ranks : {1u, 2u, 3u, 4u, 8u, 17u}) {
        for (const size_t n : {0u, 1u, 3u, 7u, 8u, 15u, 16u, 17u, 63u, 64u, 65u, 129u, 1000u}) {
          SCOPED_TRACE(std::string(Name(from_type)) + " to " + Name(to_type) + ", " +
                       std::to_string(ranks) + " ranks, " + std::to_string(n));
          std::vector<Data> from;
          for (size_t r = 0; r < ranks; ++r) from.push_back(RandomValues(from_type, n, &random));
          const auto size = static_cast<size_t>(SizeOf(to_type));
          const float scale = n % 2 == 0 ? 1 : 1.0f / static_cast<float>(ranks);
          Data expected(n * size);
          OrderedSumReference(Pointers(from), from_type, scale, expected.data(), to_type, n);
          OnEveryTarget([&] {
            Data sum(n * size);
            OrderedSum(Pointers(from), from_type, scale, sum.data(), to_type, n);
            ExpectSame(to_type, expected, sum);
          });
        }
      }
    }
  }
}

TEST(OrderedSumTest, AnyStartWritesItsElementsOnly) {
  std::mt19937 random(2);
  for (const FloatType type : kTypes) {
    const auto size = static_cast<size_t>(SizeOf(type));
    for (size_t start = 0; start < 8; ++start) {
      std::vector<Data> from;
      for (int r = 0; r < 3; ++r) from.push_back(RandomValues(type, 200, &random));
      Data expected = from[0];
      OrderedSumReference(Pointers(from, start * size), type, 1, expected.data() + start * size,
                          type, 100);
      OnEveryTarget([&] {
        Data sum = from[0];
        OrderedSum(Pointers(from, start * size), type, 1, sum.data() + start * size, type, 100);
        ExpectSame(type, expected, sum);
      });
    }
  }
}

// As an exchange leaves them: the others' side by side, without the rank's own; into its own.
TEST(OrderedSumTest, SumsWhatAnExchangeLeaves) {
  std::mt19937 random(5);
  for (const FloatType type : kTypes) {
    for (const uint32_t ranks : {1u, 2u, 3u, 7u, 65u}) {
      for (uint32_t rank = 0; rank < ranks; rank += 1 + ranks / 8) {
        constexpr size_t kN = 77;
        std::vector<Data> from;
        Data others;
        for (uint32_t r = 0; r < ranks; ++r) {
          from.push_back(RandomValues(type, kN, &random));
          if (r != rank) others.insert(others.end(), from[r].begin(), from[r].end());
        }
        Data expected(from[0].size());
        const float scale = 1.0f / static_cast<float>(ranks);
        OrderedSumReference(Pointers(from), type, scale, expected.data(), type, kN);
        Data own = from[rank];
        OrderedSumOn(nullptr,
                     {.own = own.data(),
                      .others = others.data(),
                      .stride = own.size(),
                      .rank = rank,
                      .ranks = ranks},
                     type, scale, own.data(), kN);
        ExpectSame(type, expected, own);
      }
    }
  }
}

TEST(OrderedSumTest, MayReplaceAnyAddend) {
  std::mt19937 random(3);
  for (const FloatType type : kTypes) {
    for (size_t target = 0; target < 4; ++target) {
      std::vector<Data> from;
      for (int r = 0; r < 4; ++r) from.push_back(RandomValues(type, 333, &random));
      Data expected(from[0].size());
      OrderedSumReference(Pointers(from), type, 1, expected.data(), type, 333);
      OnEveryTarget([&] {
        std::vector<Data> own = from;
        OrderedSum(Pointers(own), type, 1, own[target].data(), type, 333);
        ExpectSame(type, expected, own[target]);
      });
    }
  }
}

TEST(OrderedSumTest, AddsByTheTreeAndRoundsOnce) {
  const float values[] = {1e8f, 1, -1e8f};
  const void* const forth[] = {&values[0], &values[1], &values[2]};
  const void* const back[] = {&values[0], &values[2], &values[1]};
  const uint16_t narrow[] = {FromFloat(256, FloatType::kBf16), FromFloat(1, FloatType::kBf16)};
  const void* const two_ones[] = {&narrow[0], &narrow[1], &narrow[1]};
  const float tie = 0x1.01p0f;  // between two of bf16, of which the lower is even
  const void* const alone[] = {&tie};
  OnEveryTarget([&] {
    float sum = -1;
    OrderedSum(forth, FloatType::kF32, 1, &sum, FloatType::kF32, 1);
    EXPECT_EQ(0, sum);
    OrderedSum(back, FloatType::kF32, 1, &sum, FloatType::kF32, 1);
    EXPECT_EQ(1, sum);
    uint16_t rounded = 0;
    const void* const four[] = {&values[0], &values[1], &values[2], &values[1]};
    OrderedSum(four, FloatType::kF32, 1, &sum, FloatType::kF32, 1);
    EXPECT_EQ(0, sum) << "(0 + 1) + (2 + 3): one after the other it were 1";
    OrderedSum(back, FloatType::kF32, 0.25f, &sum, FloatType::kF32, 1);
    EXPECT_EQ(0.25f, sum);
    OrderedSum(two_ones, FloatType::kBf16, 1, &rounded, FloatType::kBf16, 1);
    EXPECT_EQ(258, ToFloat(rounded, FloatType::kBf16)) << "rounded at each step it were 256";
    OrderedSum(alone, FloatType::kF32, 1, &rounded, FloatType::kBf16, 1);
    EXPECT_EQ(1, ToFloat(rounded, FloatType::kBf16));
  });
}

TEST(OrderedSumTest, FlushesSubnormalsWhateverTheThreadDoes) {
  const float values[] = {0x1p-127f, -0x1p-127f, 0x1p-126f, -0x1.8p-126f};
  OnEveryTarget([&] {
    for (const float a : values) {
      for (const float b : values) {
        const void* const from[] = {&a, &b};
        float expected = 0, sum = 0, flushed = 0;
        OrderedSumReference(from, FloatType::kF32, 1, &expected, FloatType::kF32, 1);
        OrderedSum(from, FloatType::kF32, 1, &sum, FloatType::kF32, 1);
        {
          const ScopedFlushDenormals flush;
          OrderedSum(from, FloatType::kF32, 1, &flushed, FloatType::kF32, 1);
        }
        EXPECT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(sum));
        EXPECT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(flushed));
      }
    }
  });
  volatile float subnormal = 1e-40f;
  EXPECT_NE(0.0f, subnormal * 2.0f) << "the caller's thread is left as it was";
}

}  // namespace
}  // namespace sluice
