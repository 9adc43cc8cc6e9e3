#include "optim/adamw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "core/executor.h"
#include "optim/adamw_reference.h"
#include "optim/convert.h"
#include "tests/optim/adamw_data.h"
#include "tests/optim/targets.h"

namespace sluice {
namespace {

// Around every vector width, and around the kernel's blocks of 32.
constexpr size_t kSizes[] = {0,  1,  2,  3,  4,  5,  7,    8,    9,    15,   16,
                             17, 31, 32, 33, 63, 65, 1023, 1024, 1025, 2047, 2049};

TEST(AdamWTest, SeveralTargetsAreTested) {
  // A baseline and at least one more, or the other tests compare nothing.
  EXPECT_GE(hwy::SupportedAndGeneratedTargets().size(), 2u);
}

TEST(AdamWTest, EverySizeAndStartGivesTheReferencesBits) {
  for (WeightDecayMode mode : kDecayModes) {
    const AdamWCoefficients coefficients = MakeCoefficients(Hyper(mode), 3, 0.37F);
    for (size_t n : kSizes) {
      for (size_t start = 0; start < 4; ++start) {
        SCOPED_TRACE(testing::Message() << n << " elements from " << start);
        const Data before = RandomData(n + 8, static_cast<uint32_t>(n));
        const Data all = Expected(coefficients, Subnormals::kGradual, before);
        Data expected = before;  // outside the span nothing changes
        for (size_t i = start; i < start + n; ++i) {
          expected.master[i] = all.master[i];
          expected.exp_avg[i] = all.exp_avg[i];
          expected.exp_avg_sq[i] = all.exp_avg_sq[i];
        }
        ForEachTarget([&] {
          Data data = before;
          AdamWUpdate(coefficients, data.spans(start, n));
          ExpectSameBits(data, expected);
        });
      }
    }
  }
}

// Every pass also with sums: they are what AddStripes makes of the states before and after, whose
// bits, and the parameters', are those of a pass without.
TEST(AdamWTest, SumsAreThoseOfTheStatesBeforeAndAfter) {
  const std::array<size_t, 3> stripe = {3, 512 + 3, 1024 + 3};
  const auto sums_of = [&](const Data& data, size_t start, size_t n) {
    StripeSums sums;
    size_t state = 0;
    for (const auto* values : {&data.master, &data.exp_avg, &data.exp_avg_sq}) {
      AddStripes(&sums, std::as_bytes(std::span(*values).subspan(start, SummedElements(n))),
                 stripe[state++]);
    }
    return sums;
  };
  for (const WeightDecayMode mode : kDecayModes) {
    const AdamWCoefficients coefficients = MakeCoefficients(Hyper(mode), 3, 0.37F);
    for (const FloatType grad_type : kTypes) {
      for (int param = -1; param < 3; ++param) {
        for (const size_t n : kSizes) {
          SCOPED_TRACE(testing::Message() << n << " elements, gradients " << Name(grad_type)
                                          << ", parameters " << param);
          const size_t start = n % 4;
          const Data before = RandomData(n + 8, static_cast<uint32_t>(n));
          std::vector<float> grads(n), plain(n + 1), out(n + 1);  // room for any type
          Convert(before.grad.data() + start, FloatType::kF32, grads.data(), grad_type, n);
          const auto spans = [&](Data* data, std::vector<float>* params) {
            AdamWSpans all = data->spans(start, n);
            all.grad = grads.data();
            all.grad_type = grad_type;
            all.param_out = param < 0 ? nullptr : params->data();
            all.param_type = param < 0 ? FloatType::kF32 : kTypes[param];
            return all;
          };
          Data expected = before;
          AdamWUpdate(coefficients, spans(&expected, &plain));
          ForEachTarget([&] {
            Data data = before;
            std::ranges::fill(out, 0.0F);
            StripeSums was, becomes;
            AdamWSpans all = spans(&data, &out);
            all.sums = {.before = &was, .after = &becomes, .stripe = stripe};
            AdamWUpdate(coefficients, all);
            ExpectSameBits(data, expected);
            EXPECT_EQ(0, std::memcmp(plain.data(), out.data(), n * sizeof(float)));
            EXPECT_EQ(sums_of(before, start, n), was);
            EXPECT_EQ(sums_of(expected, start, n), becomes);
          });
        }
      }
    }
  }
}

TEST(AdamWTest, SpecialValuesGiveTheReferencesBits) {
  const Data before = SpecialData();
  for (WeightDecayMode mode : kDecayModes) {
    const AdamWCoefficients coefficients = MakeCoefficients(Hyper(mode), 1, 1.0F);
    const Data gradual = Expected(coefficients, Subnormals::kGradual, before);
    const Data flushed = Expected(coefficients, Subnormals::kFlushed, before);
    ForEachTarget([&] {
      Data data = before;
      AdamWUpdate(coefficients, data.spans());
      ExpectSameBits(data, gradual);

      SCOPED_TRACE("FTZ and DAZ");
      data = before;
      {
        const ScopedFlushDenormals flush;
        AdamWUpdate(coefficients, data.spans());
      }
      ExpectSameBits(data, flushed);
    });
  }
}

TEST(AdamWTest, ZeroGradientsOfFreshStatesOnlyDecay) {
  Data data(37);
  std::fill(data.master.begin(), data.master.end(), 2.0F);
  const AdamWCoefficients coefficients =
      MakeCoefficients(Hyper(WeightDecayMode::kDecoupled), 1, 1.0F);
  AdamWUpdate(coefficients, data.spans());
  for (size_t i = 0; i < data.size(); ++i) {
    EXPECT_EQ(data.master[i], 2.0F * coefficients.decay);
    EXPECT_EQ(data.exp_avg[i], 0);
    EXPECT_EQ(data.exp_avg_sq[i], 0);
  }
}

// The distance of `actual` from `exact` in units of the last place of `scale`, the largest number
// that went into it (which is more than the result where terms cancel).
double Ulps(float actual, double exact, double scale) {
  return std::abs(actual - exact) / std::ldexp(1.0, std::ilogb(scale) - 23);
}

TEST(AdamWTest, IsWithinFewUlpsOfTheExactResult) {
  const Data before = RandomData(20000, 11);
  for (WeightDecayMode mode : kDecayModes) {
    for (int64_t step : {1, 2, 10, 1000, 100000}) {
      const AdamWHyper hyper = Hyper(mode);
      const AdamWCoefficients c = MakeCoefficients(hyper, step, 0.5F);
      Data data = before;
      AdamWUpdate(c, data.spans());
      for (size_t i = 0; i < data.size(); ++i) {
        const auto [p, m, v] =
            AdamWExact(hyper, step, 0.5, before.grad[i],
                       {before.master[i], before.exp_avg[i], before.exp_avg_sq[i]});
        const double p_scale = std::max(std::abs(double{before.master[i]}), std::abs(p));
        const double g_scale = std::abs(0.5 * before.grad[i]) + 0.1 * p_scale;
        const double m_scale = std::max(std::abs(double{before.exp_avg[i]}), 0.1 * g_scale);
        const double v_scale = std::max(v, 0.001 * g_scale * g_scale);
        const double d = std::sqrt(v) / c.bias_correction2_sqrt;
        const double update_scale = c.step_size * m_scale / d * v_scale / v;
        ASSERT_LE(Ulps(data.exp_avg[i], m, m_scale), 4) << i << " step " << step;
        ASSERT_LE(Ulps(data.exp_avg_sq[i], v, v_scale), 4) << i << " step " << step;
        ASSERT_LE(Ulps(data.master[i], p, std::max(p_scale, update_scale)), 4)
            << i << " step " << step;
      }
    }
  }
}

TEST(AdamWTest, StaysWithTheExactTrajectory) {
  const AdamWHyper hyper = Hyper(WeightDecayMode::kDecoupled);
  std::mt19937 random(5);
  Data data(3);
  std::vector<AdamWElement<double>> exact(3, {1, 0, 0});
  std::fill(data.master.begin(), data.master.end(), 1.0F);
  for (int64_t step = 1; step <= 500; ++step) {
    for (size_t i = 0; i < data.size(); ++i) {
      data.grad[i] = std::ldexp(static_cast<float>(random() >> 8), -24) - 0.25F;
      exact[i] = AdamWExact(hyper, step, 1, data.grad[i], exact[i]);
    }
    AdamWUpdate(MakeCoefficients(hyper, step, 1), data.spans());
  }
  for (size_t i = 0; i < data.size(); ++i) {
    EXPECT_NEAR(data.master[i], exact[i].master, 2e-5);
    EXPECT_NEAR(data.exp_avg[i], exact[i].exp_avg, 1e-6);
    EXPECT_NEAR(data.exp_avg_sq[i], exact[i].exp_avg_sq, 1e-6);
  }
}

TEST(AdamWTest, AnySplitGivesTheSameBits) {
  const Data before = RandomData(4096 + 77, 3);
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 7, 1.0F);
  Data whole = before;
  AdamWUpdate(coefficients, whole.spans());
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    ForEachTarget([&] {
      std::mt19937 random(seed);
      Data parts = before;
      for (size_t start = 0; start < parts.size();) {
        const size_t n = std::min<size_t>(parts.size() - start, random() % (1 << (seed % 12 + 1)));
        AdamWUpdate(coefficients, parts.spans(start, n));
        start += n;
      }
      ExpectSameBits(parts, whole);
    });
  }
}

TEST(AdamWTest, NanAndInfReachTheParameters) {
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 1, 1.0F);
  for (FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    ForEachTarget([&] {
      Data data(2);
      data.master = {1.0F, std::numeric_limits<float>::infinity()};
      data.grad = {std::numeric_limits<float>::quiet_NaN(), 1.0F};
      uint16_t params[2];
      AdamWSpans spans = data.spans();
      spans.param_out = params;
      spans.param_type = type;
      AdamWUpdate(coefficients, spans);
      EXPECT_TRUE(std::isnan(ToFloat(params[0], type)));
      EXPECT_TRUE(std::isinf(ToFloat(params[1], type)));
    });
  }
}

TEST(AdamWCoefficientsTest, AreRoundedOnceFromDoubles) {
  const AdamWCoefficients c = MakeCoefficients(Hyper(WeightDecayMode::kDecoupled), 1, 2.0F);
  EXPECT_EQ(c.grad_scale, 2.0F);
  EXPECT_EQ(c.decay, static_cast<float>(1 - 3e-3 * 0.1));
  EXPECT_EQ(c.one_minus_beta1, static_cast<float>(1 - 0.9));
  EXPECT_EQ(c.beta2, 0.999F);
  EXPECT_EQ(c.one_minus_beta2, static_cast<float>(1 - 0.999));
  EXPECT_EQ(c.bias_correction2_sqrt, static_cast<float>(std::sqrt(1 - 0.999)));
  EXPECT_EQ(c.eps, 1e-8F);
  EXPECT_EQ(c.step_size, static_cast<float>(3e-3 / (1 - 0.9)));
  EXPECT_EQ(MakeCoefficients(Hyper(WeightDecayMode::kL2), 1, 1).decay, 0.1F);
}

TEST(AdamWCoefficientsTest, BiasCorrectionFadesAndCanBeOff) {
  const AdamWCoefficients late = MakeCoefficients({.lr = 0.5}, 1'000'000'000, 1);
  EXPECT_EQ(late.bias_correction2_sqrt, 1);
  EXPECT_EQ(late.step_size, 0.5F);
  const AdamWCoefficients off = MakeCoefficients({.lr = 0.5, .bias_correction = false}, 1, 1);
  EXPECT_EQ(off.bias_correction2_sqrt, 1);
  EXPECT_EQ(off.step_size, 0.5F);
}

TEST(AdamWDeathTest, BugsOfTheCallerAbort) {
  EXPECT_DEATH(MakeCoefficients(AdamWHyper(), 0, 1), "step >= 1");
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 1, 1);
  Data data(4);
  AdamWSpans spans = data.spans();
  spans.exp_avg = spans.exp_avg.first(3);
  EXPECT_DEATH(AdamWUpdate(coefficients, spans), "exp_avg");
  spans = data.spans();
  spans.grad = nullptr;
  EXPECT_DEATH(AdamWUpdate(coefficients, spans), "grad");
}

}  // namespace
}  // namespace sluice
