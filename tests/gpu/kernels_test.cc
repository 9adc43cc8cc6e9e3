// The CUDA kernels against the CPU's functions, element by element: the same bits for every size,
// alignment and type, whatever the values; of a NaN only that it is one.

#include "optim/cuda/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "comm/ordered_reduce.h"
#include "core/executor.h"
#include "optim/convert.h"
#include "optim/norm.h"
#include "tests/gpu/cuda_caller.h"

namespace sluice {
namespace {

using testing::CheckCuda;
using testing::CudaStream;
using testing::Mix;

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
constexpr size_t kSizes[] = {0,  1,  2,    3,    4,    5,    7,    8,    9,     63,
                             64, 65, 1023, 1024, 1025, 4095, 4096, 4097, 12289, 300'001};

using Values = std::vector<std::byte>;

Values BytesOf(const std::vector<float>& floats, FloatType type) {
  Values bytes(floats.size() * static_cast<size_t>(SizeOf(type)));
  Convert(floats.data(), FloatType::kF32, bytes.data(), type, floats.size());
  return bytes;
}

// Any bits at all, every fourth one of those that matter: zeros, infinities, NaNs, the borders of
// what is subnormal and of what overflows.
Values AnyBits(size_t n, FloatType type, uint64_t seed) {
  constexpr uint32_t kSpecial32[] = {0u,          0x80000000u, 1u,          0x007FFFFFu,
                                     0x00800000u, 0x00800001u, 0x807FFFFFu, 0x7F7FFFFFu,
                                     0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x7F800001u};
  constexpr uint16_t kSpecial16[] = {0,      0x8000, 1,      0x007F, 0x0080, 0x8080,
                                     0x03FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7C01,
                                     0x7E00, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0x7F7F};
  Values bytes(n * static_cast<size_t>(SizeOf(type)));
  for (size_t i = 0; i < n; ++i) {
    const uint64_t random = Mix(seed * 1'000'003 + i);
    if (type == FloatType::kF32) {
      const auto bits =
          i % 4 == 3 ? kSpecial32[random % std::size(kSpecial32)] : static_cast<uint32_t>(random);
      std::memcpy(bytes.data() + i * 4, &bits, 4);
    } else {
      const auto bits =
          i % 4 == 3 ? kSpecial16[random % std::size(kSpecial16)] : static_cast<uint16_t>(random);
      std::memcpy(bytes.data() + i * 2, &bits, 2);
    }
  }
  return bytes;
}

// Values as training has them: of any size from 2^low to 2^high, some zero.
std::vector<float> Spread(size_t n, int low, int high, uint64_t seed) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    const uint64_t random = Mix(seed * 7'919 + i);
    const int exponent = low + static_cast<int>(random % static_cast<uint64_t>(high - low));
    const float mantissa = 1.0f + static_cast<float>(random >> 40) * 0x1p-24f;
    values[i] = random % 11 == 0 ? 0.0f : std::ldexp(random & 512 ? -mantissa : mantissa, exponent);
  }
  return values;
}

// Bytes in the GPU's memory, `shift` bytes behind an address that vectors may be loaded from.
class OnGpu {
 public:
  explicit OnGpu(const Values& values, size_t shift = 0)
      : size_(values.size()), shift_(shift), memory_(testing::CudaMemory(size_ + 32)) {
    CheckCuda(cudaMemcpy(data(), values.data(), size_, cudaMemcpyHostToDevice));
    CheckCuda(cudaStreamSynchronize(nullptr));  // the copy may return before it has arrived
  }
  std::byte* data() const { return memory_.get() + shift_; }
  float* floats() const { return reinterpret_cast<float*>(data()); }
  Values Get() const {
    Values values(size_);
    CheckCuda(cudaMemcpy(values.data(), data(), size_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  const size_t size_;
  const size_t shift_;
  const std::shared_ptr<std::byte> memory_;
};

// The first element that differs, or n. Two NaNs are the same if `any_nan`.
size_t FirstDifference(const Values& a, const Values& b, FloatType type, bool any_nan) {
  const auto size = static_cast<size_t>(SizeOf(type));
  for (size_t i = 0; i < a.size() / size; ++i) {
    if (std::memcmp(a.data() + i * size, b.data() + i * size, size) == 0) continue;
    float x = 0, y = 0;
    Convert(a.data() + i * size, type, &x, FloatType::kF32, 1);
    Convert(b.data() + i * size, type, &y, FloatType::kF32, 1);
    if (!any_nan || !std::isnan(x) || !std::isnan(y)) return i;
  }
  return a.size() / size;
}

#define EXPECT_SAME(expected, actual, type, any_nan)                  \
  EXPECT_EQ((expected).size() / static_cast<size_t>(SizeOf(type)),    \
            FirstDifference((expected), (actual), (type), (any_nan))) \
      << "is the first element of " << Name(type) << " that differs"

class KernelsTest : public ::testing::Test {
 protected:
  void Finish() {
    CheckCuda(cudaGetLastError());
    stream_.Synchronize();
  }

  // One update on both, of everything given, and compares everything.
  void CompareAdamW(const AdamWHyper& hyper, size_t shift, const Values& grad, FloatType grad_type,
                    FloatType param_type, std::vector<Values> states) {
    const size_t n = states[0].size() / 4;
    const AdamWCoefficients c = MakeCoefficients(hyper, 3, 0.125f);
    Values params(n * static_cast<size_t>(SizeOf(param_type)));
    const OnGpu gpu_grad(grad, shift * static_cast<size_t>(SizeOf(grad_type)));
    const OnGpu gpu_params(params, shift * static_cast<size_t>(SizeOf(param_type)));
    std::vector<OnGpu> gpu;
    for (const Values& state : states) gpu.emplace_back(state, shift * 4);
    cuda::AdamWUpdate(c,
                      {.master = {gpu[0].floats(), n},
                       .exp_avg = {gpu[1].floats(), n},
                       .exp_avg_sq = {gpu[2].floats(), n},
                       .grad = gpu_grad.data(),
                       .grad_type = grad_type,
                       .param_out = gpu_params.data(),
                       .param_type = param_type},
                      stream_.get());
    Finish();
    const auto span = [n](Values& v) { return std::span(reinterpret_cast<float*>(v.data()), n); };
    {
      const ScopedFlushDenormals flush;
      AdamWUpdate(c, {.master = span(states[0]),
                      .exp_avg = span(states[1]),
                      .exp_avg_sq = span(states[2]),
                      .grad = grad.data(),
                      .grad_type = grad_type,
                      .param_out = params.data(),
                      .param_type = param_type});
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_SAME(states[i], gpu[i].Get(), FloatType::kF32, true);
    EXPECT_SAME(params, gpu_params.Get(), param_type, true);
  }

  CudaStream stream_;
};

TEST_F(KernelsTest, ConversionsHaveTheCpusBits) {
  for (FloatType from : kTypes) {
    for (FloatType to : kTypes) {
      for (size_t n : kSizes) {
        SCOPED_TRACE(::testing::Message() << Name(from) << " to " << Name(to) << ", n " << n);
        const Values in = AnyBits(n, from, n);
        Values expected(n * static_cast<size_t>(SizeOf(to)));
        Convert(in.data(), from, expected.data(), to, n);
        for (size_t shift : {0, 1}) {
          const OnGpu source(in, shift * static_cast<size_t>(SizeOf(from)));
          const OnGpu target(Values(expected.size()));
          cuda::Convert(source.data(), from, target.data(), to, n, stream_.get());
          Finish();
          EXPECT_SAME(expected, target.Get(), to, false);
        }
      }
    }
  }
}

TEST_F(KernelsTest, EverySixteenBitValueIsWidenedAsOnTheCpu) {
  for (FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    Values all(size_t{2} << 16), expected(size_t{4} << 16);
    for (uint32_t bits = 0; bits < 1u << 16; ++bits) std::memcpy(&all[bits * 2], &bits, 2);
    Convert(all.data(), type, expected.data(), FloatType::kF32, 1 << 16);
    const OnGpu source(all), target{Values(expected.size())};
    cuda::Convert(source.data(), type, target.data(), FloatType::kF32, 1 << 16, stream_.get());
    Finish();
    EXPECT_SAME(expected, target.Get(), FloatType::kF32, false);
  }
}

// Of as many ranks as there are trees of, and more than are few; own addends in any place, and the
// sum over them.
TEST_F(KernelsTest, SumsOverRanksHaveTheCpusBits) {
  for (FloatType type : kTypes) {
    for (uint32_t ranks : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 15u, 16u, 17u, 40u}) {
      for (size_t n : {0, 1, 3, 4, 5, 64, 4097, 12289}) {
        const uint32_t rank = static_cast<uint32_t>(n) % ranks;
        SCOPED_TRACE(::testing::Message() << Name(type) << ", " << ranks << " ranks, n " << n);
        const size_t bytes = n * static_cast<size_t>(SizeOf(type));
        const auto shift = n % 2 * static_cast<size_t>(SizeOf(type));
        Values own = AnyBits(n, type, n + ranks);
        const Values others = AnyBits(n * (ranks - 1), type, n + ranks + 100);
        const OnGpu gpu_own(own, shift), gpu_others(others);
        const float scale = n % 3 == 0 ? 1 : 1.0f / static_cast<float>(ranks);
        const auto addends = [&](const std::byte* mine, const std::byte* theirs) {
          return Addends{
              .own = mine, .others = theirs, .stride = bytes, .rank = rank, .ranks = ranks};
        };
        OrderedSumOn(stream_.get(), addends(gpu_own.data(), gpu_others.data()), type, scale,
                     gpu_own.data(), n);
        Finish();
        OrderedSumOn(nullptr, addends(own.data(), others.data()), type, scale, own.data(), n);
        EXPECT_SAME(own, gpu_own.Get(), type, true);
      }
    }
  }
}

TEST_F(KernelsTest, AdditionsHaveTheCpusBits) {
  for (FloatType type : kTypes) {
    for (size_t n : kSizes) {
      SCOPED_TRACE(::testing::Message() << Name(type) << ", n " << n);
      const auto shift = n % 2 * static_cast<size_t>(SizeOf(type));
      const Values more = AnyBits(n, type, n + 1);
      Values sum = AnyBits(n, type, n + 2);
      const OnGpu gpu_more(more, shift), gpu_sum(sum);
      cuda::Accumulate(gpu_sum.data(), gpu_more.data(), type, n, stream_.get());
      Finish();
      {
        const ScopedFlushDenormals flush;
        Accumulate(sum.data(), more.data(), type, n);
      }
      EXPECT_SAME(sum, gpu_sum.Get(), type, true);
    }
  }
}

TEST_F(KernelsTest, SumsOfSquaresHaveTheCpusBits) {
  for (FloatType type : kTypes) {
    for (size_t n : kSizes) {
      for (bool any : {false, true}) {
        SCOPED_TRACE(::testing::Message() << Name(type) << ", n " << n << ", any bits " << any);
        const Values values =
            any ? AnyBits(n, type, n + 3) : BytesOf(Spread(n, -140, 20, n + 3), type);
        const auto cells = static_cast<size_t>(CellCount(static_cast<int64_t>(n)));
        std::vector<double> expected(cells), sums(cells);
        const OnGpu source(values), target{Values(cells * 8)};
        cuda::CellSquareSums(source.data(), type, n, reinterpret_cast<double*>(target.data()),
                             stream_.get());
        Finish();
        const Values got = target.Get();
        std::memcpy(sums.data(), got.data(), got.size());
        const ScopedFlushDenormals flush;
        for (size_t i = 0; i < cells; ++i) {
          const size_t at = i * static_cast<size_t>(kCellElements);
          expected[i] = CellSquareSum(values.data() + at * static_cast<size_t>(SizeOf(type)), type,
                                      std::min(n - at, static_cast<size_t>(kCellElements)));
          if (std::isnan(expected[i]) && std::isnan(sums[i])) continue;
          ASSERT_EQ(std::bit_cast<uint64_t>(expected[i]), std::bit_cast<uint64_t>(sums[i])) << i;
        }
      }
    }
  }
}

TEST_F(KernelsTest, UpdatesHaveTheCpusBits) {
  const AdamWHyper hypers[] = {
      {.lr = 1e-2, .weight_decay = 0.1},
      {.lr = 2e-2, .weight_decay = 0.05, .decay_mode = WeightDecayMode::kL2},
      {.eps = 0, .weight_decay = 0, .bias_correction = false}};
  for (const AdamWHyper& hyper : hypers) {
    for (FloatType grad_type : kTypes) {
      for (FloatType param_type : kTypes) {
        for (size_t n : kSizes) {
          SCOPED_TRACE(::testing::Message() << Name(grad_type) << " to " << Name(param_type)
                                            << ", n " << n << ", lr " << hyper.lr);
          std::vector<float> squares = Spread(n, -40, 2, n + 6);
          for (float& v : squares) v = std::abs(v);
          CompareAdamW(hyper, n % 3 == 0 ? 1 : 0, BytesOf(Spread(n, -30, 6, n + 4), grad_type),
                       grad_type, param_type,
                       {BytesOf(Spread(n, -12, 3, n + 5), FloatType::kF32),
                        BytesOf(Spread(n, -20, 3, n + 7), FloatType::kF32),
                        BytesOf(squares, FloatType::kF32)});
        }
      }
    }
  }
}

// Gradients and states down to subnormals, and around the border where they begin.
TEST_F(KernelsTest, UpdatesOfTheSmallestValuesHaveTheCpusBits) {
  for (FloatType grad_type : kTypes) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(::testing::Message() << Name(grad_type) << ", seed " << seed);
      const size_t n = 200'000;
      std::vector<float> squares = Spread(n, -149, -110, seed + 2);
      for (float& v : squares) v = std::abs(v);
      CompareAdamW({.lr = 1e-3, .eps = seed % 2 == 0 ? 1e-8 : 1e-30, .weight_decay = 0.01}, 0,
                   BytesOf(Spread(n, -149, -50, seed), grad_type), grad_type, FloatType::kBf16,
                   {BytesOf(Spread(n, -149, -110, seed + 1), FloatType::kF32),
                    BytesOf(Spread(n, -149, -115, seed + 3), FloatType::kF32),
                    BytesOf(squares, FloatType::kF32)});
    }
  }
}

TEST_F(KernelsTest, UpdatesOfAnyBitsHaveTheCpusBits) {
  for (FloatType grad_type : kTypes) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(::testing::Message() << Name(grad_type) << ", seed " << seed);
      const size_t n = 100'001;
      CompareAdamW(
          {.weight_decay = 0.1,
           .decay_mode = seed % 2 == 0 ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled},
          0, AnyBits(n, grad_type, seed), grad_type, FloatType::kF16,
          {AnyBits(n, FloatType::kF32, seed + 1), AnyBits(n, FloatType::kF32, seed + 2),
           AnyBits(n, FloatType::kF32, seed + 3)});
    }
  }
}

TEST_F(KernelsTest, WithoutParametersToWriteOnlyStatesChange) {
  const Values grad = BytesOf(Spread(1001, -10, 0, 1), FloatType::kF32);
  Values states[] = {grad, grad, Values(grad.size())};
  const OnGpu gpu[] = {OnGpu(states[0]), OnGpu(states[1]), OnGpu(states[2])};
  const OnGpu gpu_grad(grad);
  const AdamWCoefficients c = MakeCoefficients({}, 1, 1.0f);
  cuda::AdamWUpdate(c,
                    {.master = {gpu[0].floats(), 1001},
                     .exp_avg = {gpu[1].floats(), 1001},
                     .exp_avg_sq = {gpu[2].floats(), 1001},
                     .grad = gpu_grad.data()},
                    stream_.get());
  Finish();
  const auto span = [](Values& v) { return std::span(reinterpret_cast<float*>(v.data()), 1001); };
  const ScopedFlushDenormals flush;
  AdamWUpdate(c, {.master = span(states[0]),
                  .exp_avg = span(states[1]),
                  .exp_avg_sq = span(states[2]),
                  .grad = grad.data()});
  for (int i = 0; i < 3; ++i) EXPECT_SAME(states[i], gpu[i].Get(), FloatType::kF32, true);
}

}  // namespace
}  // namespace sluice
