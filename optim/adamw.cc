#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"
#include "optim/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/adamw.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// One tile, fp32 gradient. Mul and Add, never MulAdd: the latter is fused on some targets only.
template <WeightDecayMode kDecay>
void UpdateTile(const AdamWCoefficients& c, float* HWY_RESTRICT master, float* HWY_RESTRICT exp_avg,
                float* HWY_RESTRICT exp_avg_sq, const float* HWY_RESTRICT grad, size_t n) {
  const hn::ScalableTag<float> d;
  const auto grad_scale = hn::Set(d, c.grad_scale);
  const auto decay = hn::Set(d, c.decay);
  const auto one_minus_beta1 = hn::Set(d, c.one_minus_beta1);
  const auto beta2 = hn::Set(d, c.beta2);
  const auto one_minus_beta2 = hn::Set(d, c.one_minus_beta2);
  const auto correction = hn::Set(d, c.bias_correction2_sqrt);
  const auto eps = hn::Set(d, c.eps);
  const auto step_size = hn::Set(d, c.step_size);

  const auto step = [&](float* pp, float* mp, float* vp, const float* gp) HWY_ATTR {
    auto p = hn::LoadU(d, pp);
    auto m = hn::LoadU(d, mp);
    auto v = hn::LoadU(d, vp);
    auto g = hn::Mul(hn::LoadU(d, gp), grad_scale);
    if constexpr (kDecay == WeightDecayMode::kL2) {
      g = hn::Add(g, hn::Mul(decay, p));
    } else {
      p = hn::Mul(p, decay);
    }
    m = hn::Add(m, hn::Mul(one_minus_beta1, hn::Sub(g, m)));
    v = hn::Add(hn::Mul(beta2, v), hn::Mul(one_minus_beta2, hn::Mul(g, g)));
    const auto denominator = hn::Add(hn::Div(hn::Sqrt(v), correction), eps);
    p = hn::Sub(p, hn::Mul(step_size, hn::Div(m, denominator)));
    hn::StoreU(p, d, pp);
    hn::StoreU(m, d, mp);
    hn::StoreU(v, d, vp);
  };

  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) step(master + i, exp_avg + i, exp_avg_sq + i, grad + i);
  if (i == n) return;
  // The rest takes the same path through buffers.
  alignas(64) float p[HWY_MAX_BYTES / 4] = {}, m[HWY_MAX_BYTES / 4] = {};
  alignas(64) float v[HWY_MAX_BYTES / 4] = {}, g[HWY_MAX_BYTES / 4] = {};
  std::copy_n(master + i, n - i, p);
  std::copy_n(exp_avg + i, n - i, m);
  std::copy_n(exp_avg_sq + i, n - i, v);
  std::copy_n(grad + i, n - i, g);
  step(p, m, v, g);
  std::copy_n(p, n - i, master + i);
  std::copy_n(m, n - i, exp_avg + i);
  std::copy_n(v, n - i, exp_avg_sq + i);
}

void UpdateTileAnyDecay(const AdamWCoefficients& c, float* master, float* exp_avg,
                        float* exp_avg_sq, const float* grad, size_t n) {
  if (c.decay_mode == WeightDecayMode::kL2) {
    UpdateTile<WeightDecayMode::kL2>(c, master, exp_avg, exp_avg_sq, grad, n);
  } else {
    UpdateTile<WeightDecayMode::kDecoupled>(c, master, exp_avg, exp_avg_sq, grad, n);
  }
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(UpdateTileAnyDecay);
HWY_EXPORT(TargetName);

namespace {
// Small enough that a tile's gradient, converted, and its master, to be converted, stay in L1.
constexpr size_t kTile = 1024;
}  // namespace

AdamWCoefficients MakeCoefficients(const AdamWHyper& h, int64_t step, float grad_scale) {
  SLUICE_CHECK(step >= 1);
  const auto t = static_cast<double>(step);
  const double correction1 = h.bias_correction ? 1.0 - std::pow(h.beta1, t) : 1.0;
  const double correction2 = h.bias_correction ? 1.0 - std::pow(h.beta2, t) : 1.0;
  const bool decoupled = h.decay_mode == WeightDecayMode::kDecoupled;
  return {.grad_scale = grad_scale,
          .decay = static_cast<float>(decoupled ? 1.0 - h.lr * h.weight_decay : h.weight_decay),
          .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
          .beta2 = static_cast<float>(h.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
          .bias_correction2_sqrt = static_cast<float>(std::sqrt(correction2)),
          .eps = static_cast<float>(h.eps),
          .step_size = static_cast<float>(h.lr / correction1),
          .decay_mode = h.decay_mode};
}

void AdamWUpdate(const AdamWCoefficients& coefficients, const AdamWSpans& spans) {
  const size_t n = spans.master.size();
  SLUICE_CHECK(spans.exp_avg.size() == n && spans.exp_avg_sq.size() == n);
  SLUICE_CHECK(n == 0 || spans.grad != nullptr);
  const auto grad_size = static_cast<size_t>(SizeOf(spans.grad_type));
  const auto param_size = static_cast<size_t>(SizeOf(spans.param_type));
  const auto* grads = static_cast<const std::byte*>(spans.grad);
  auto* params = static_cast<std::byte*>(spans.param_out);
  alignas(64) float converted[kTile];
  for (size_t i = 0; i < n; i += kTile) {
    const size_t tile = std::min(kTile, n - i);
    const float* grad = converted;
    if (spans.grad_type == FloatType::kF32) {
      grad = static_cast<const float*>(spans.grad) + i;
    } else {
      Convert(grads + i * grad_size, spans.grad_type, converted, FloatType::kF32, tile);
    }
    float* master = spans.master.data() + i;
    HWY_DYNAMIC_DISPATCH(UpdateTileAnyDecay)
    (coefficients, master, spans.exp_avg.data() + i, spans.exp_avg_sq.data() + i, grad, tile);
    if (params != nullptr)
      Convert(master, FloatType::kF32, params + i * param_size, spans.param_type, tile);
  }
}

const char* VectorTarget() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace sluice
#endif  // HWY_ONCE
