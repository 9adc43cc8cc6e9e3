// AdamW on a GPU, one pass: each state is read and written once, four elements by a thread.

#include "core/cuda/float.cuh"
#include "core/cuda/launch.cuh"
#include "optim/cuda/kernels.h"

namespace sluice::cuda {

namespace {

struct Arrays {
  float* master;
  float* exp_avg;
  float* exp_avg_sq;
  const void* grad;
  void* param_out;
  size_t n;
};

// The operations of optim/adamw.cc in their order.
__device__ void Step(const AdamWCoefficients& c, float grad, float* p, float* m, float* v) {
  float g = Mul(grad, c.grad_scale);
  if (c.decay_mode == WeightDecayMode::kL2) {
    g = Add(g, Mul(c.decay, *p));
  } else {
    *p = Mul(*p, c.decay);
  }
  *m = Add(*m, Mul(c.one_minus_beta1, Sub(g, *m)));
  *v = Add(Mul(c.beta2, *v), Mul(c.one_minus_beta2, Mul(g, g)));
  const float denominator = Add(Div(Sqrt(*v), c.bias_correction2_sqrt), c.eps);
  *p = Sub(*p, Mul(c.step_size, Div(*m, denominator)));
}

// Items are the elements of `a` from `begin` on.
template <FloatType kGrad, FloatType kParam>
__global__ void UpdateElements(const AdamWCoefficients c, const Arrays a, size_t begin) {
  for (size_t i = begin + FirstItem(); i < a.n; i += ItemStride()) {
    Step(c, Load<kGrad>(a.grad, i), a.master + i, a.exp_avg + i, a.exp_avg_sq + i);
    if (a.param_out != nullptr) Store<kParam>(a.master[i], a.param_out, i);
  }
}

template <FloatType kGrad, FloatType kParam>
__global__ void UpdateVectors(const AdamWCoefficients c, const Arrays a) {
  constexpr FloatType kF32 = FloatType::kF32;
  for (size_t i = FirstItem(); i < a.n / kVector; i += ItemStride()) {
    const float4 g = LoadVector<kGrad>(a.grad, i);
    float4 p = LoadVector<kF32>(a.master, i);
    float4 m = LoadVector<kF32>(a.exp_avg, i);
    float4 v = LoadVector<kF32>(a.exp_avg_sq, i);
    Step(c, g.x, &p.x, &m.x, &v.x);
    Step(c, g.y, &p.y, &m.y, &v.y);
    Step(c, g.z, &p.z, &m.z, &v.z);
    Step(c, g.w, &p.w, &m.w, &v.w);
    StoreVector<kF32>(p, a.master, i);
    StoreVector<kF32>(m, a.exp_avg, i);
    StoreVector<kF32>(v, a.exp_avg_sq, i);
    if (a.param_out != nullptr) StoreVector<kParam>(p, a.param_out, i);
  }
}

}  // namespace

void AdamWUpdate(const AdamWCoefficients& coefficients, const AdamWSpans& s, void* stream_handle) {
  auto* const stream = static_cast<cudaStream_t>(stream_handle);
  const Arrays arrays{.master = s.master.data(),
                      .exp_avg = s.exp_avg.data(),
                      .exp_avg_sq = s.exp_avg_sq.data(),
                      .grad = s.grad,
                      .param_out = s.param_out,
                      .n = s.master.size()};
  const bool vectors = AllowsVectors(arrays.master, FloatType::kF32) &&
                       AllowsVectors(arrays.exp_avg, FloatType::kF32) &&
                       AllowsVectors(arrays.exp_avg_sq, FloatType::kF32) &&
                       AllowsVectors(s.grad, s.grad_type) &&
                       AllowsVectors(s.param_out, s.param_type);
  const size_t in_vectors = vectors ? arrays.n / kVector : 0;
  const size_t rest = arrays.n - in_vectors * kVector;
  WithType(s.grad_type, [&](auto grad) {
    WithType(s.param_type, [&](auto param) {
      constexpr FloatType kGrad = decltype(grad)::value;
      constexpr FloatType kParam = decltype(param)::value;
      if (in_vectors > 0) {
        UpdateVectors<kGrad, kParam>
            <<<BlocksFor(in_vectors), kThreads, 0, stream>>>(coefficients, arrays);
      }
      if (rest > 0) {
        UpdateElements<kGrad, kParam>
            <<<BlocksFor(rest), kThreads, 0, stream>>>(coefficients, arrays, in_vectors * kVector);
      }
    });
  });
}

}  // namespace sluice::cuda
