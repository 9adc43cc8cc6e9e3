// tests/optim/adamw_data.h
//
// States and gradients for tests of AdamW, and what the reference makes of them.

#ifndef SLUICE_TESTS_OPTIM_ADAMW_DATA_H_
#define SLUICE_TESTS_OPTIM_ADAMW_DATA_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "optim/adamw_reference.h"
#include "optim/convert.h"

namespace sluice {

inline constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
inline constexpr WeightDecayMode kDecayModes[] = {WeightDecayMode::kDecoupled,
                                                  WeightDecayMode::kL2};

inline AdamWHyper Hyper(WeightDecayMode mode) {
  return {.lr = 3e-3, .weight_decay = 0.1, .decay_mode = mode};
}

inline bool SameBits(float a, float b) {
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
inline Data RandomData(size_t n, uint32_t seed) {
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
inline Data SpecialData() {
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

inline Data Expected(const AdamWCoefficients& coefficients, Subnormals subnormals,
                     const Data& before) {
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

inline void ExpectSameBits(const Data& actual, const Data& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(SameBits(actual.master[i], expected.master[i])) << i;
    ASSERT_TRUE(SameBits(actual.exp_avg[i], expected.exp_avg[i])) << i;
    ASSERT_TRUE(SameBits(actual.exp_avg_sq[i], expected.exp_avg_sq[i])) << i;
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

}  // namespace sluice

#endif  // SLUICE_TESTS_OPTIM_ADAMW_DATA_H_
