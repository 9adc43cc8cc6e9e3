#include "optim/norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "optim/convert.h"
#include "tests/optim/targets.h"

namespace sluice {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The definition in norm.h.
double LaneSum(const std::vector<float>& values) {
  double lanes[8] = {};
  for (size_t i = 0; i < values.size(); ++i) lanes[i % 8] += double{values[i]} * double{values[i]};
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Magnitudes near each other, so that the order of the sum shows.
std::vector<float> RandomValues(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(n);
  for (float& v : values) {
    const auto mantissa = static_cast<float>(static_cast<int32_t>(random()));
    v = std::ldexp(mantissa, static_cast<int>(random() % 8) - 35);
  }
  return values;
}

constexpr size_t kSizes[] = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 1001, 4095, 4096};

TEST(NormTest, CellSquareSumIsTheLanesSumOnEveryTarget) {
  for (size_t n : kSizes) {
    SCOPED_TRACE(n);
    const std::vector<float> values = RandomValues(n, static_cast<uint32_t>(n));
    const double expected = LaneSum(values);
    ForEachTarget([&] { EXPECT_EQ(CellSquareSum(values.data(), FloatType::kF32, n), expected); });
  }
}

TEST(NormTest, SixteenBitCellsAreTheirValuesInFp32) {
  for (FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    for (size_t n : kSizes) {
      SCOPED_TRACE(n);
      std::mt19937 random(static_cast<uint32_t>(n));
      std::vector<uint16_t> bits(n);
      std::vector<float> values(n);
      for (size_t i = 0; i < n; ++i) {
        bits[i] = static_cast<uint16_t>(random() & 0xBFFF);  // neither Inf nor NaN
        values[i] = ToFloat(bits[i], type);
      }
      const double expected = LaneSum(values);
      ForEachTarget([&] { EXPECT_EQ(CellSquareSum(bits.data(), type, n), expected); });
    }
  }
}

TEST(NormTest, UnalignedCellsSumTheSame) {
  const std::vector<float> values = RandomValues(1004, 1);
  for (size_t start = 0; start < 4; ++start) {
    const std::vector<float> part(values.begin() + static_cast<ptrdiff_t>(start),
                                  values.begin() + static_cast<ptrdiff_t>(start) + 1000);
    ForEachTarget([&] {
      EXPECT_EQ(CellSquareSum(values.data() + start, FloatType::kF32, 1000), LaneSum(part));
    });
  }
}

TEST(NormTest, OneBadValueAnywhereShows) {
  for (FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    for (float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      for (size_t at = 0; at < 19; ++at) {
        std::vector<uint16_t> bits(19, FromFloat(1, type));
        bits[at] = FromFloat(bad, type);
        ForEachTarget([&] {
          const double sum = CellSquareSum(bits.data(), type, bits.size());
          EXPECT_EQ(std::isnan(sum), std::isnan(bad));
          EXPECT_FALSE(std::isfinite(sum));
        });
      }
    }
  }
}

TEST(NormTest, LargestFp32ValuesDoNotOverflow) {
  const std::vector<float> values(4096, std::numeric_limits<float>::max());
  EXPECT_TRUE(std::isfinite(CellSquareSum(values.data(), FloatType::kF32, values.size())));
}

TEST(NormDeathTest, MoreThanACellIsABug) {
  const std::vector<float> values(4097);
  EXPECT_DEATH(CellSquareSum(values.data(), FloatType::kF32, values.size()), "kCellElements");
}

TEST(NormTest, CellsAreAddedInOrder) {
  EXPECT_EQ(NormOfCells({}), 0);
  EXPECT_EQ(NormOfCells(std::array{9.0, 16.0}), 5);
  // Behind 2^53 each 1 is lost by itself; in front of it they add up.
  std::vector<double> cells(17, 1.0);
  cells.front() = 0x1p53;
  EXPECT_EQ(NormOfCells(cells), std::sqrt(0x1p53));
  std::reverse(cells.begin(), cells.end());
  EXPECT_EQ(NormOfCells(cells), std::sqrt(0x1p53 + 16));
  EXPECT_NE(std::sqrt(0x1p53), std::sqrt(0x1p53 + 16));
  EXPECT_TRUE(std::isnan(NormOfCells(std::array{1.0, kNan, kInf})));
}

TEST(NormTest, ClipsOnlyAboveTheMaximum) {
  const ClipDecision below = DecideClip(0.5, 1, 1.0);
  EXPECT_FALSE(below.overflow);
  EXPECT_EQ(below.norm, 0.5);
  EXPECT_EQ(below.grad_scale, 1.0F);

  const ClipDecision above = DecideClip(8, 1, 2.0);
  EXPECT_FALSE(above.overflow);
  EXPECT_EQ(above.norm, 8);
  EXPECT_EQ(above.grad_scale, static_cast<float>(2.0 / (8.0 + 1e-6)));

  EXPECT_EQ(DecideClip(0, 1, 1.0).grad_scale, 1.0F);
}

TEST(NormTest, NoMaximumMeansNoClipping) {
  EXPECT_EQ(DecideClip(1e30, 1, 0).grad_scale, 1.0F);
  EXPECT_EQ(DecideClip(1e30, 1, -1).grad_scale, 1.0F);
}

TEST(NormTest, UnscalesBeforeItClips) {
  const ClipDecision decision = DecideClip(1024 * 3, 1024, 4.0);
  EXPECT_EQ(decision.norm, 3);
  EXPECT_EQ(decision.grad_scale, 1.0F / 1024);
  const ClipDecision clipped = DecideClip(1024 * 3, 1024, 1.5);
  EXPECT_EQ(clipped.grad_scale, static_cast<float>(1.5 / (3 + 1e-6) / 1024));
}

TEST(NormTest, InfAndNanAreOverflow) {
  for (double norm : {kInf, kNan}) {
    for (double max_norm : {0.0, 1.0}) {
      const ClipDecision decision = DecideClip(norm, 65536, max_norm);
      EXPECT_TRUE(decision.overflow);
      EXPECT_FALSE(std::isfinite(decision.norm));
      EXPECT_EQ(decision.grad_scale, 0);
    }
  }
}

}  // namespace
}  // namespace sluice
