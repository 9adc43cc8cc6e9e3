#include "optim/adamw.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>

#include "core/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/adamw.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the two that say which target this is.
#include "core/checksum-inl.h"
#include "core/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

// Elements of a block: a stripe of each state.
constexpr size_t kBlock = kStripeElements;
constexpr size_t kLineBytes = 64;
// How far ahead of its use a state is asked for: the hardware's own prefetchers stop at a page and
// fall behind three streams that are written too. The gradients they follow; asking for these as
// well made the kernel slower.
constexpr size_t kAheadBytes = 1024;

// To be written: a line that was asked for to be read only is asked for a second time.
HWY_INLINE void Prefetch(const float* values, size_t begin, size_t bytes) {
  const auto* const at = reinterpret_cast<const std::byte*>(values) + begin;
  for (size_t line = 0; line < bytes; line += kLineBytes) __builtin_prefetch(at + line, /*rw=*/1);
}
HWY_INLINE void PrefetchBlock(const float* values) {
  Prefetch(values, kAheadBytes, kBlock * sizeof(float));
}

// The sums of the blocks of the three states; or nothing.
template <bool kSums>
struct BlockSums {
  explicit BlockSums(const StateSums&) {}
  void Add(const float*, const float*, const float*, size_t) {}
  void AddTo(StripeSums*) const {}
};

#if SLUICE_VECTOR_SUMS
template <>
struct BlockSums<true> {
  HWY_INLINE explicit BlockSums(const StateSums& to) : stripe(to.stripe) {}

  // The block from element i on, which is in L1, or in what is still to be stored there.
  HWY_INLINE void Add(const float* p, const float* m, const float* v, size_t i) {
    AddState(p + i, stripe[0] + i / kBlock);
    AddState(m + i, stripe[1] + i / kBlock);
    AddState(v + i, stripe[2] + i / kBlock);
  }
  HWY_INLINE void AddState(const float* values, size_t at) {
    constexpr size_t kPartElements = kSumLanes * sizeof(uint64_t) / sizeof(float);
    const auto words = [](const float* from)
                           HWY_ATTR { return hn::BitCast(kSumTag, hn::LoadU(DF(), from)); };
    for (size_t part = 0; part < kSumParts; ++part) {
      const float* const a = values + part * kPartElements;
      sums.Add(words(a), words(a + kBlock / 2), KeysOf(at, part), part);
    }
  }
  HWY_INLINE void AddTo(StripeSums* to) const { sums.AddTo(to); }

  const std::array<size_t, 3> stripe;
  VectorSums sums;
};
#endif

// All in registers, one pass: a block of each span at a time, the last, incomplete one through
// buffers. Mul and Add, never MulAdd: the latter is fused on some targets only.
template <WeightDecayMode kDecay, FloatType kGrad, bool kParam, FloatType kParamType, bool kSums>
void Update(const AdamWCoefficients& c, const AdamWSpans& spans) {
  const DF d;
  const auto grad_scale = hn::Set(d, c.grad_scale);
  const auto decay = hn::Set(d, c.decay);
  const auto one_minus_beta1 = hn::Set(d, c.one_minus_beta1);
  const auto beta2 = hn::Set(d, c.beta2);
  const auto one_minus_beta2 = hn::Set(d, c.one_minus_beta2);
  const auto correction = hn::Set(d, c.bias_correction2_sqrt);
  const auto eps = hn::Set(d, c.eps);
  const auto step_size = hn::Set(d, c.step_size);
  constexpr size_t kGradSize = SizeOf(kGrad), kParamSize = SizeOf(kParamType);

  // One vector of elements; returns the new master.
  const auto step = [&](float* pp, float* mp, float* vp, const void* grads, size_t i) HWY_ATTR {
    auto p = hn::LoadU(d, pp + i);
    auto m = hn::LoadU(d, mp + i);
    auto v = hn::LoadU(d, vp + i);
    auto g = hn::Mul(Load<kGrad>(grads, i), grad_scale);
    if constexpr (kDecay == WeightDecayMode::kL2) {
      g = hn::Add(g, hn::Mul(decay, p));
    } else {
      p = hn::Mul(p, decay);
    }
    m = hn::Add(m, hn::Mul(one_minus_beta1, hn::Sub(g, m)));
    v = hn::Add(hn::Mul(beta2, v), hn::Mul(one_minus_beta2, hn::Mul(g, g)));
    const auto denominator = hn::Add(hn::Div(hn::Sqrt(v), correction), eps);
    p = hn::Sub(p, hn::Mul(step_size, hn::Div(m, denominator)));
    hn::StoreU(p, d, pp + i);
    hn::StoreU(m, d, mp + i);
    hn::StoreU(v, d, vp + i);
    return p;
  };
  const size_t lanes = hn::Lanes(d);
  static_assert(kBlock % (2 * hn::MaxLanes(DF())) == 0);
  const auto block = [&](float* pp, float* mp, float* vp, const void* grads, void* params,
                         bool stream) HWY_ATTR {
    for (size_t i = 0; i < kBlock; i += 2 * lanes) {
      const VF first = step(pp, mp, vp, grads, i);
      const VF second = step(pp, mp, vp, grads, i + lanes);
      if constexpr (kParam) StorePair<kParamType>(first, second, params, i, stream);
    }
  };

  const size_t n = spans.master.size();
  float* const master = spans.master.data();
  float* const exp_avg = spans.exp_avg.data();
  float* const exp_avg_sq = spans.exp_avg_sq.data();
  const auto* const grads = static_cast<const std::byte*>(spans.grad);
  auto* const params = static_cast<std::byte*>(spans.param_out);
  // The parameters are not read here, so they needn't be fetched to be written.
  const bool stream = kParam && kCanStream && IsAligned(params);
  BlockSums<kSums> before(spans.sums), after(spans.sums);
  // What is used before anything asked for ahead comes: all of it at once, for each would wait for
  // the one before.
  const size_t first = std::min(kAheadBytes, n * sizeof(float));
  for (const float* values : {master, exp_avg, exp_avg_sq}) Prefetch(values, 0, first);
  size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    PrefetchBlock(master + i);
    PrefetchBlock(exp_avg + i);
    PrefetchBlock(exp_avg_sq + i);
    before.Add(master, exp_avg, exp_avg_sq, i);
    block(master + i, exp_avg + i, exp_avg_sq + i, grads + i * kGradSize,
          kParam ? params + i * kParamSize : nullptr, stream);
    after.Add(master, exp_avg, exp_avg_sq, i);
  }
  before.AddTo(spans.sums.before);
  after.AddTo(spans.sums.after);
  if (i < n) {
    const size_t rest = n - i;
    alignas(64) float p[kBlock] = {}, m[kBlock] = {}, v[kBlock] = {}, g[kBlock] = {};
    alignas(64) float out[kBlock];
    std::copy_n(master + i, rest, p);
    std::copy_n(exp_avg + i, rest, m);
    std::copy_n(exp_avg_sq + i, rest, v);
    std::memcpy(g, grads + i * kGradSize, rest * kGradSize);
    block(p, m, v, g, out, /*stream=*/false);
    std::copy_n(p, rest, master + i);
    std::copy_n(m, rest, exp_avg + i);
    std::copy_n(v, rest, exp_avg_sq + i);
    if (kParam) std::memcpy(params + i * kParamSize, out, rest * kParamSize);
  }
  if (stream) hwy::FlushStream();  // before others are told that the parameters are there
}

using UpdateFunction = void (*)(const AdamWCoefficients&, const AdamWSpans&);

template <WeightDecayMode kDecay, FloatType kGrad, bool kSums>
UpdateFunction ForParam(const AdamWSpans& spans) {
  using enum FloatType;
  if (spans.param_out == nullptr) return Update<kDecay, kGrad, false, kF32, kSums>;
  static constexpr UpdateFunction kTable[3] = {Update<kDecay, kGrad, true, kF32, kSums>,
                                               Update<kDecay, kGrad, true, kBf16, kSums>,
                                               Update<kDecay, kGrad, true, kF16, kSums>};
  return kTable[static_cast<size_t>(spans.param_type)];
}

template <WeightDecayMode kDecay, FloatType kGrad>
UpdateFunction ForSums(const AdamWSpans& spans) {
#if SLUICE_VECTOR_SUMS
  if (spans.sums.before != nullptr) return ForParam<kDecay, kGrad, true>(spans);
#endif
  return ForParam<kDecay, kGrad, false>(spans);
}

template <WeightDecayMode kDecay>
UpdateFunction ForGrad(const AdamWSpans& spans) {
  switch (spans.grad_type) {
    case FloatType::kF32:
      return ForSums<kDecay, FloatType::kF32>(spans);
    case FloatType::kBf16:
      return ForSums<kDecay, FloatType::kBf16>(spans);
    case FloatType::kF16:
      return ForSums<kDecay, FloatType::kF16>(spans);
  }
  SLUICE_CHECK(false);
}

void UpdateAny(const AdamWCoefficients& c, const AdamWSpans& spans) {
  const UpdateFunction update = c.decay_mode == WeightDecayMode::kL2
                                    ? ForGrad<WeightDecayMode::kL2>(spans)
                                    : ForGrad<WeightDecayMode::kDecoupled>(spans);
#if SLUICE_VECTOR_SUMS
  update(c, spans);
#else
  const auto add = [&](StripeSums* to) {
    if (to == nullptr) return;
    const std::span<const float> states[] = {spans.master, spans.exp_avg, spans.exp_avg_sq};
    for (size_t s = 0; s < 3; ++s)
      AddStripes(to, std::as_bytes(states[s].first(SummedElements(states[s].size()))),
                 spans.sums.stripe[s]);
  };
  add(spans.sums.before);
  update(c, spans);
  add(spans.sums.after);
#endif
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(UpdateAny);
HWY_EXPORT(TargetName);

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
  if (n == 0) return;
  HWY_DYNAMIC_DISPATCH(UpdateAny)(coefficients, spans);
}

const char* VectorTarget() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace sluice
#endif  // HWY_ONCE
