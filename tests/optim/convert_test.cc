#include "optim/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "core/executor.h"
#include "tests/optim/targets.h"

namespace sluice {
namespace {

constexpr FloatType kNarrow[] = {FloatType::kBf16, FloatType::kF16};
constexpr size_t kSizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1000};

// Every high half with low halves around every tie that bf16 and fp16, its subnormals included,
// have.
std::vector<float> AllExponents() {
  constexpr uint32_t kLow[] = {0x0000, 0x0001, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2001,
                               0x2FFF, 0x3000, 0x3001, 0x4000, 0x5000, 0x6000, 0x7FFF, 0x8000,
                               0x8001, 0xA000, 0xC000, 0xCFFF, 0xD000, 0xE000, 0xF000, 0xFFFF};
  std::vector<float> values;
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (uint32_t low : kLow) values.push_back(std::bit_cast<float>(high << 16 | low));
  }
  return values;
}

std::vector<uint16_t> AllNarrow() {
  std::vector<uint16_t> values(0x10000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  return values;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (float v : values) bits.push_back(std::bit_cast<uint32_t>(v));
  return bits;
}

// The value of finite bits; of Inf, the value that would follow the largest finite one.
double Value(uint16_t bits, FloatType type) {
  const int fraction_bits = type == FloatType::kBf16 ? 7 : 10;
  const int bias = type == FloatType::kBf16 ? 127 : 15;
  const int exponent = (bits & 0x7FFF) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int significand = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
  const double value = std::ldexp(significand, std::max(exponent, 1) - bias - fraction_bits);
  return (bits & 0x8000) != 0 ? -value : value;
}

uint16_t InfBits(FloatType type) { return type == FloatType::kBf16 ? 0x7F80 : 0x7C00; }

TEST(ConvertScalarTest, ToFloatIsTheValueOfTheBits) {
  for (FloatType type : kNarrow) {
    for (uint16_t bits : AllNarrow()) {
      const float value = ToFloat(bits, type);
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0);
      if ((bits & 0x7FFF) > InfBits(type)) {
        ASSERT_TRUE(std::isnan(value)) << bits;
      } else if ((bits & 0x7FFF) == InfBits(type)) {
        ASSERT_TRUE(std::isinf(value)) << bits;
      } else {
        ASSERT_EQ(value, Value(bits, type)) << bits;
      }
    }
  }
}

TEST(ConvertScalarTest, FromFloatIsNearestAndEvenOfTwo) {
  for (FloatType type : kNarrow) {
    for (float value : AllExponents()) {
      const uint16_t bits = FromFloat(value, type);
      if (std::isnan(value)) {
        const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
        ASSERT_EQ(bits, type == FloatType::kBf16 ? 0x7FC0 : 0x7E00 | sign);
        continue;
      }
      ASSERT_EQ((bits & 0x8000) != 0, std::signbit(value));
      const double x = std::abs(value);
      const auto magnitude = static_cast<uint16_t>(bits & 0x7FFF);
      ASSERT_LE(magnitude, InfBits(type));
      if (magnitude == InfBits(type) && x > Value(magnitude, type)) continue;
      const double distance = std::abs(x - Value(magnitude, type));
      for (int neighbour : {magnitude - 1, magnitude + 1}) {
        if (neighbour < 0 || neighbour > InfBits(type)) continue;
        const double other = std::abs(x - Value(static_cast<uint16_t>(neighbour), type));
        ASSERT_LE(distance, other) << value;
        ASSERT_TRUE(distance < other || magnitude % 2 == 0) << value;
      }
    }
  }
}

TEST(ConvertScalarTest, OverflowsAsIeeeDoes) {
  EXPECT_EQ(FromFloat(65519.996F, FloatType::kF16), 0x7BFF);
  EXPECT_EQ(FromFloat(65520.0F, FloatType::kF16), 0x7C00);
  EXPECT_EQ(FromFloat(-65520.0F, FloatType::kF16), 0xFC00);
  EXPECT_EQ(FromFloat(1e30F, FloatType::kF16), 0x7C00);
  EXPECT_EQ(FromFloat(std::numeric_limits<float>::max(), FloatType::kBf16), 0x7F80);
  EXPECT_EQ(FromFloat(0x1p-24F, FloatType::kF16), 1);
  EXPECT_EQ(FromFloat(0x1p-25F, FloatType::kF16), 0);
  EXPECT_EQ(FromFloat(0x1.000002p-25F, FloatType::kF16), 1);
}

// On every target, with subnormals gradual and flushed by the thread.
template <typename Body>
void ForEachTargetAndMode(const Body& body) {
  ForEachTarget([&] {
    body();
    SCOPED_TRACE("FTZ and DAZ");
    const ScopedFlushDenormals flush;
    body();
  });
}

TEST(ConvertTest, WidensEveryValue) {
  const std::vector<uint16_t> from = AllNarrow();
  for (FloatType type : kNarrow) {
    SCOPED_TRACE(Name(type));
    std::vector<uint32_t> expected;
    for (uint16_t bits : from) expected.push_back(std::bit_cast<uint32_t>(ToFloat(bits, type)));
    ForEachTargetAndMode([&] {
      std::vector<float> to(from.size());
      Convert(from.data(), type, to.data(), FloatType::kF32, from.size());
      EXPECT_TRUE(Bits(to) == expected);
    });
  }
}

TEST(ConvertTest, NarrowsEveryExponentAndTie) {
  const std::vector<float> from = AllExponents();
  for (FloatType type : kNarrow) {
    SCOPED_TRACE(Name(type));
    std::vector<uint16_t> expected;
    for (float value : from) expected.push_back(FromFloat(value, type));
    ForEachTargetAndMode([&] {
      std::vector<uint16_t> to(from.size());
      Convert(from.data(), FloatType::kF32, to.data(), type, from.size());
      EXPECT_TRUE(to == expected);
    });
  }
}

TEST(ConvertTest, NarrowToNarrowGoesThroughFp32) {
  const std::vector<uint16_t> from = AllNarrow();
  for (FloatType type : kNarrow) {
    const FloatType other = type == FloatType::kBf16 ? FloatType::kF16 : FloatType::kBf16;
    std::vector<uint16_t> expected;
    for (uint16_t bits : from) expected.push_back(FromFloat(ToFloat(bits, type), other));
    ForEachTargetAndMode([&] {
      std::vector<uint16_t> to(from.size());
      Convert(from.data(), type, to.data(), other, from.size());
      EXPECT_TRUE(to == expected);
    });
  }
}

TEST(ConvertTest, SameTypeIsACopyOfTheBits) {
  std::vector<uint16_t> from = AllNarrow();
  for (FloatType type : kNarrow) {
    std::vector<uint16_t> to(from.size());
    Convert(from.data(), type, to.data(), type, from.size());
    EXPECT_TRUE(to == from);
    Convert(to.data(), type, to.data(), type, to.size());  // in place
    EXPECT_TRUE(to == from);
  }
  const std::vector<float> floats = {0x1p-149F, -0.0F, std::bit_cast<float>(0x7F800001u)};
  std::vector<float> copy(floats.size());
  Convert(floats.data(), FloatType::kF32, copy.data(), FloatType::kF32, floats.size());
  EXPECT_EQ(Bits(copy), Bits(floats));
}

TEST(ConvertTest, NothingIsConvertedFromNowhere) {
  for (FloatType from : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
    for (FloatType to : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
      ForEachTarget([&] { Convert(nullptr, from, nullptr, to, 0); });
    }
    ForEachTarget([&] { Accumulate(nullptr, nullptr, from, 0); });
  }
}

TEST(ConvertTest, AnySizeAndStartWritesItsElementsOnly) {
  const std::vector<float> from = AllExponents();
  for (FloatType type : kNarrow) {
    for (size_t n : kSizes) {
      for (size_t start = 0; start < 4; ++start) {
        const float* values = from.data() + 16 * 60000 + start;
        std::vector<uint16_t> expected(n + 8, 0xABCD);
        std::vector<float> wide_expected(n + 8, 42);
        for (size_t i = 0; i < n; ++i) {
          expected[start + i] = FromFloat(values[i], type);
          wide_expected[start + i] = ToFloat(expected[start + i], type);
        }
        ForEachTarget([&] {
          std::vector<uint16_t> to(n + 8, 0xABCD);
          Convert(values, FloatType::kF32, to.data() + start, type, n);
          EXPECT_EQ(to, expected);
          std::vector<float> wide(n + 8, 42);
          Convert(to.data() + start, type, wide.data() + start, FloatType::kF32, n);
          EXPECT_EQ(Bits(wide), Bits(wide_expected));
        });
      }
    }
  }
}

// Random bits: every magnitude, Inf and NaN. Which NaN is not promised.
TEST(AccumulateTest, AddsInFp32AndRoundsOnce) {
  std::mt19937 random(7);
  for (FloatType type : kNarrow) {
    SCOPED_TRACE(Name(type));
    for (size_t n : kSizes) {
      std::vector<uint16_t> into(n + 3), from(n + 3), expected(n + 3);
      for (size_t i = 0; i < n + 3; ++i) {
        into[i] = static_cast<uint16_t>(random());
        from[i] = static_cast<uint16_t>(random());
        const float sum = ToFloat(into[i], type) + ToFloat(from[i], type);
        expected[i] = i < 3 ? into[i] : FromFloat(sum, type);
      }
      ForEachTarget([&] {
        std::vector<uint16_t> result = into;
        Accumulate(result.data() + 3, from.data() + 3, type, n);
        for (size_t i = 0; i < n + 3; ++i) {
          if (i >= 3 && std::isnan(ToFloat(expected[i], type))) {
            EXPECT_TRUE(std::isnan(ToFloat(result[i], type))) << i;
          } else {
            EXPECT_EQ(result[i], expected[i]) << i;
          }
        }
      });
    }
  }
}

TEST(AccumulateTest, AddsFp32) {
  std::mt19937 random(8);
  for (size_t n : kSizes) {
    std::vector<float> into(n + 1), from(n + 1), expected(n + 1);
    for (size_t i = 0; i < n + 1; ++i) {
      into[i] = std::ldexp(static_cast<float>(static_cast<int32_t>(random())),
                           static_cast<int>(i % 60) - 30);
      from[i] = std::ldexp(static_cast<float>(static_cast<int32_t>(random())),
                           static_cast<int>(i % 70) - 35);
      expected[i] = i < n ? into[i] + from[i] : into[i];
    }
    ForEachTarget([&] {
      std::vector<float> result = into;
      Accumulate(result.data(), from.data(), FloatType::kF32, n);
      EXPECT_EQ(Bits(result), Bits(expected));
    });
  }
}

TEST(AccumulateTest, KeepsInfinities) {
  for (FloatType type : kNarrow) {
    const uint16_t inf = InfBits(type);
    const std::vector<uint16_t> from = {FromFloat(1, type), inf, static_cast<uint16_t>(inf - 1)};
    ForEachTarget([&] {
      std::vector<uint16_t> into = {inf, FromFloat(-1, type), static_cast<uint16_t>(inf - 1)};
      Accumulate(into.data(), from.data(), type, into.size());
      EXPECT_EQ(into, (std::vector<uint16_t>{inf, inf, inf}));  // the last by overflow
    });
  }
}

TEST(ConvertTest, AdoptsWhatWasChangedAndNothingElse) {
  for (const FloatType type : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
    const auto size = static_cast<size_t>(SizeOf(type));
    for (const size_t n : {0u, 1u, 1023u, 1024u, 1025u, 3000u}) {
      std::vector<float> master(n);
      for (size_t i = 0; i < n; ++i) master[i] = 1.0f + static_cast<float>(i) * 0x1p-20f;
      std::vector<std::byte> param(n * size);
      Convert(master.data(), FloatType::kF32, param.data(), type, n);
      std::vector<float> expected = master;
      AdoptChanged(param.data(), type, master.data(), n);
      EXPECT_EQ(master, expected) << Name(type) << ", " << n;
      if (n == 0) continue;
      const float changed = -2.5f;
      Convert(&changed, FloatType::kF32, param.data() + (n - 1) * size, type, 1);
      expected[n - 1] = changed;
      AdoptChanged(param.data(), type, master.data(), n);
      EXPECT_EQ(master, expected) << Name(type) << ", " << n;
    }
  }
}

}  // namespace
}  // namespace sluice
