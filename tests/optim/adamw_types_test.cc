// AdamW for every pair of types, at every place in memory.

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
#include "tests/optim/adamw_data.h"
#include "tests/optim/targets.h"

namespace sluice {
namespace {

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

TEST(AdamWTypesTest, EveryPairOfTypesSizeAndPlaceGivesTheReferencesBits) {
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
TEST(AdamWTypesTest, EveryNarrowGradientAndSpecialParameterIsTheReferences) {
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

}  // namespace
}  // namespace sluice
