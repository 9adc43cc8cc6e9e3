#include "optim/adamw.h"

#include <gtest/gtest.h>

#include <algorithm>
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
#include "tests/optim/targets.h"

namespace sluice {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
constexpr WeightDecayMode kDecayModes[] = {WeightDecayMode::kDecoupled, WeightDecayMode::kL2};

// Around every vector width, and around the kernel's blocks of 32.
constexpr size_t kSizes[] = {0,  1,  2,  3,  4,  5,  7,    8,    9,    15,   16,
                             17, 31, 32, 33, 63, 65, 1023, 1024, 1025, 2047, 2049};

AdamWHyper Hyper(WeightDecayMode mode) {
  return {.lr = 3e-3, .weight_decay = 0.1, .decay_mode = mode};
}

bool SameBits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// States and gradients of n elements.
struct Data {
  explicit Data(size_t n) : master(n), exp_avg(n), exp_avg_sq(n), grad(n) {}

  size_t size() const { return grad.size(); }
  AdamWElement<float> element(size_t i) const { return {master[i], exp_avg[i], exp_avg_sq[i]}; }
  AdamWSpans spans() { return spans(0, size()); }
  AdamWSpans spans(size_t start, size_t n) {
    return {.master = std::span(master).subspan(start, n),
            .exp_avg = std::span(exp_avg).subspan(start, n),
            .exp_avg_sq = std::span(exp_avg_sq).subspan(start, n),
            .grad = grad.data() + start};
  }

  std::vector<float> master, exp_avg, exp_avg_sq, grad;
};

// Values as training has them, over many magnitudes and both signs.
Data RandomData(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  const auto value = [&](int exponent_min, uint32_t exponents) {
    const float fraction = 1 + std::ldexp(static_cast<float>(random() >> 8), -24);
    const float sign = random() % 2 == 0 ? 1.0F : -1.0F;
    return sign * std::ldexp(fraction, exponent_min + static_cast<int>(random() % exponents));
  };
  Data data(n);
  for (size_t i = 0; i < n; ++i) {
    data.master[i] = value(-8, 9);
    data.exp_avg[i] = value(-14, 14);
    data.exp_avg_sq[i] = std::abs(value(-12, 12));
    data.grad[i] = value(-14, 16);
  }
  return data;
}

// Every combination of special values in gradient and states.
Data SpecialData() {
  using Limits = std::numeric_limits<float>;
  const float specials[] = {0.0F,
                            -0.0F,
                            Limits::denorm_min(),
                            -0x1.8p-130F,
                            Limits::min(),
                            -1.0F,
                            0.7F,
                            1e-20F,
                            3e18F,
                            Limits::max(),
                            Limits::infinity(),
                            -Limits::infinity(),
                            Limits::quiet_NaN()};
  constexpr size_t kCount = std::size(specials);
  Data data(kCount * kCount * kCount * kCount);
  for (size_t i = 0; i < data.size(); ++i) {
    data.master[i] = specials[i % kCount];
    data.exp_avg[i] = specials[i / kCount % kCount];
    data.exp_avg_sq[i] = specials[i / kCount / kCount % kCount];
    data.grad[i] = specials[i / kCount / kCount / kCount];
  }
  return data;
}

Data Expected(const AdamWCoefficients& coefficients, Subnormals subnormals, const Data& before) {
  Data after = before;
  for (size_t i = 0; i < before.size(); ++i) {
    const auto [p, m, v] =
        AdamWRounded(coefficients, subnormals, before.grad[i], before.element(i));
    after.master[i] = p;
    after.exp_avg[i] = m;
    after.exp_avg_sq[i] = v;
  }
  return after;
}

void ExpectSameBits(const Data& actual, const Data& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(SameBits(actual.master[i], expected.master[i])) << i;
    ASSERT_TRUE(SameBits(actual.exp_avg[i], expected.exp_avg[i])) << i;
    ASSERT_TRUE(SameBits(actual.exp_avg_sq[i], expected.exp_avg_sq[i])) << i;
  }
}

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

// `grads` narrowed to `type` and what they are then.
struct TypedGrads {
  TypedGrads(const std::vector<float>& grads, FloatType type)
      : bytes(grads.size() * 4), type(type) {
    Convert(grads.data(), FloatType::kF32, bytes.data(), type, grads.size());
    widened.resize(grads.size());
    Convert(bytes.data(), type, widened.data(), FloatType::kF32, grads.size());
  }
  std::vector<std::byte> bytes;
  std::vector<float> widened;
  FloatType type;
};

// `values` at every place that its type allows within a line: `at()` is `offset` elements after an
// aligned one. What surrounds them must stay.
class Placed {
 public:
  Placed(size_t n, FloatType type, size_t offset)
      : size_(n * static_cast<size_t>(SizeOf(type))),
        start_(kLine + offset * static_cast<size_t>(SizeOf(type))),
        bytes_(size_ + 4 * kLine, std::byte{0x5A}) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    start_ += (kLine - address % kLine) % kLine;
  }
  std::byte* at() { return bytes_.data() + start_; }
  bool SurroundedAsBefore() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < start_ || i >= start_ + size_) && bytes_[i] != std::byte{0x5A}) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kLine = 64;
  size_t size_;
  size_t start_;
  std::vector<std::byte> bytes_;
};

// States, gradients and parameters of `n` elements, each span at a place of its own.
void ExpectReferencesBits(const AdamWCoefficients& coefficients, const Data& before,
                          const TypedGrads& grads, const Data& expected, FloatType param_type,
                          bool has_param, size_t offset) {
  const size_t n = before.size();
  const auto grad_size = static_cast<size_t>(SizeOf(grads.type));
  const auto param_size = static_cast<size_t>(SizeOf(param_type));
  std::vector<std::byte> params(n * param_size);
  Convert(expected.master.data(), FloatType::kF32, params.data(), param_type, n);
  ForEachTarget([&] {
    constexpr FloatType kF32 = FloatType::kF32;
    Placed master(n, kF32, offset), exp_avg(n, kF32, 3 * offset % 16);
    Placed exp_avg_sq(n, kF32, 5 * offset % 16), grad(n, grads.type, 7 * offset % 16);
    Placed param(n, param_type, offset);
    const auto fill = [n](Placed& to, const std::vector<float>& from) {
      std::memcpy(to.at(), from.data(), n * sizeof(float));
      return std::span(reinterpret_cast<float*>(to.at()), n);
    };
    std::memcpy(grad.at(), grads.bytes.data(), n * grad_size);
    const AdamWSpans spans = {.master = fill(master, before.master),
                              .exp_avg = fill(exp_avg, before.exp_avg),
                              .exp_avg_sq = fill(exp_avg_sq, before.exp_avg_sq),
                              .grad = grad.at(),
                              .grad_type = grads.type,
                              .param_out = has_param ? param.at() : nullptr,
                              .param_type = param_type};
    AdamWUpdate(coefficients, spans);
    Data after(n);
    std::copy_n(spans.master.data(), n, after.master.begin());
    std::copy_n(spans.exp_avg.data(), n, after.exp_avg.begin());
    std::copy_n(spans.exp_avg_sq.data(), n, after.exp_avg_sq.begin());
    ExpectSameBits(after, expected);
    if (has_param) {
      EXPECT_EQ(std::memcmp(param.at(), params.data(), params.size()), 0);
    }
    for (const Placed* placed : {&master, &exp_avg, &exp_avg_sq, &grad, &param})
      EXPECT_TRUE(placed->SurroundedAsBefore());
  });
}

TEST(AdamWTest, EveryPairOfTypesSizeAndPlaceGivesTheReferencesBits) {
  for (WeightDecayMode mode : kDecayModes) {
    const AdamWCoefficients coefficients = MakeCoefficients(Hyper(mode), 2, 0.25F);
    for (FloatType grad_type : kTypes) {
      for (size_t n : {1u, 31u, 32u, 33u, 64u, 77u, 255u}) {
        const Data before = RandomData(n, static_cast<uint32_t>(n));
        const TypedGrads grads(before.grad, grad_type);
        Data expected = before;
        expected.grad = grads.widened;
        expected = Expected(coefficients, Subnormals::kGradual, expected);
        for (FloatType param_type : kTypes) {
          for (size_t offset = 0; offset < 64 / static_cast<size_t>(SizeOf(param_type)); ++offset) {
            SCOPED_TRACE(testing::Message() << Name(grad_type) << " in, " << Name(param_type)
                                            << " out, " << n << " from " << offset);
            ExpectReferencesBits(coefficients, before, grads, expected, param_type, true, offset);
          }
        }
        ExpectReferencesBits(coefficients, before, grads, expected, grad_type, false, 0);
      }
    }
  }
}

// Every gradient of 16 bits, infinities, NaN and subnormals among them, and the parameters of
// every special value.
TEST(AdamWTest, EveryNarrowGradientAndSpecialParameterIsTheReferences) {
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 4, 1.0F);
  const Data special = SpecialData();
  for (FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    SCOPED_TRACE(Name(type));
    Data before = RandomData(0x10000, 21);
    std::vector<uint16_t> grads(before.size());
    for (size_t i = 0; i < grads.size(); ++i) {
      grads[i] = static_cast<uint16_t>(i);
      before.grad[i] = ToFloat(grads[i], type);
      if (i % 3 == 0) before.master[i] = special.master[i % special.size()];
    }
    const Data expected = Expected(coefficients, Subnormals::kFlushed, before);
    ForEachTarget([&] {
      Data data = before;
      std::vector<uint16_t> params(grads.size());
      AdamWSpans spans = data.spans();
      spans.grad = grads.data();
      spans.grad_type = type;
      spans.param_out = params.data();
      spans.param_type = type;
      {
        const ScopedFlushDenormals flush;
        AdamWUpdate(coefficients, spans);
      }
      ExpectSameBits(data, expected);
      for (size_t i = 0; i < params.size(); ++i) {
        const float master = data.master[i];
        if (std::isnan(master)) {
          ASSERT_TRUE(std::isnan(ToFloat(params[i], type))) << i;
        } else {
          ASSERT_EQ(params[i], FromFloat(master, type)) << i;
        }
      }
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
