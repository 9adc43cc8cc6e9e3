// optim/adamw.h
//
// AdamW and Adam over spans, in one fused pass: gradient in any float type, fp32 states in place,
// parameter copy out in any float type. A pure function: no allocation, no threads of its own, any
// thread may call it.
//
// Bits: the same on every vector width and thread count. Multiplications and additions are separate
// operations, each rounded; square root and division are IEEE; conversions are those of convert.h.
// Subnormal inputs and results, bf16 gradients among them, are zero if the caller's thread has FTZ
// and DAZ set (core/executor.h) and gradual if not: the kernel sets neither. Where an element lies
// in a span changes nothing.
//
// The formula (Loshchilov & Hutter 2019; the order of operations of PyTorch's single-tensor AdamW),
// for step t >= 1, all in fp32, scalars computed in fp64 and rounded once:
//   g  = grad * grad_scale                  (grad_scale folds unscaling and clipping)
//   L2 decay (Adam):          g  = g + weight_decay * p
//   decoupled decay (AdamW):  p  = p * (1 - lr * weight_decay)
//   m  = m + (1 - beta1) * (g - m)
//   v  = beta2 * v + (1 - beta2) * (g * g)
//   d  = sqrt(v) / sqrt(1 - beta2^t) + eps
//   p  = p - (lr / (1 - beta1^t)) * (m / d)
// Which NaN comes of a NaN is not promised, only that one does.
//
// Memory: each span is read or written once. States are stored through the caches; the parameters,
// which are not read here, past them where `param_out` is aligned to a vector (64 bytes at most):
// what the next forward reads comes from memory, and whoever is told that the update is done finds
// them there.
//
// Sums: with StateSums the same pass also adds up what the states were and what they become
// (core/checksum.h), in registers, while it waits for the divider.

#ifndef SLUICE_OPTIM_ADAMW_H_
#define SLUICE_OPTIM_ADAMW_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/checksum.h"
#include "core/grid.h"

namespace sluice {

enum class WeightDecayMode : uint8_t { kDecoupled, kL2 };

struct AdamWHyper {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  WeightDecayMode decay_mode = WeightDecayMode::kDecoupled;
  bool bias_correction = true;
};

// The scalars of one step, rounded once. Pure; step counts from 1.
struct AdamWCoefficients {
  float grad_scale;
  float decay;  // decoupled: 1 - lr * weight_decay; L2: weight_decay
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float bias_correction2_sqrt;
  float eps;
  float step_size;  // lr / bias_correction1
  WeightDecayMode decay_mode;
};
AdamWCoefficients MakeCoefficients(const AdamWHyper& hyper, int64_t step, float grad_scale);

// Where the sums of whole stripes of each state go; what is left at the end, SummedElements(n) and
// after, is for the caller to add.
struct StateSums {
  StripeSums* before = nullptr;  // null: no sums
  StripeSums* after = nullptr;
  std::array<size_t, 3> stripe{};  // of element 0 of master, exp_avg, exp_avg_sq
};
inline constexpr size_t kStripeElements = kStripeBytes / sizeof(float);
constexpr size_t SummedElements(size_t n) { return n / kStripeElements * kStripeElements; }

// Spans of equal length n; `grad` and `param_out` are n values of their types, aligned to those
// types. `param_out` may be null: then no copy is written. None may overlap.
struct AdamWSpans {
  std::span<float> master;
  std::span<float> exp_avg;
  std::span<float> exp_avg_sq;
  const void* grad = nullptr;
  FloatType grad_type = FloatType::kF32;
  void* param_out = nullptr;
  FloatType param_type = FloatType::kF32;
  StateSums sums;
};

void AdamWUpdate(const AdamWCoefficients& coefficients, const AdamWSpans& spans);

// The vector target that AdamWUpdate runs on here, for `sluice doctor`: "AVX3_DL", "AVX3", "AVX2",
// "SSE4", "SSSE3", "SCALAR".
const char* VectorTarget();

}  // namespace sluice

#endif  // SLUICE_OPTIM_ADAMW_H_
