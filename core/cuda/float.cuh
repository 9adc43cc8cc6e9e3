// core/cuda/float.cuh
//
// What the kernels compute with: single operations that round as the CPU's do, the conversions of
// optim/convert.h in integer code, and vectors of four values. Compiled with -ftz=true, so that
// subnormal inputs and results of the operations are zeros with their sign.

#ifndef SLUICE_CORE_CUDA_FLOAT_CUH_
#define SLUICE_CORE_CUDA_FLOAT_CUH_

#include <cstdint>

#include "core/grid.h"

namespace sluice::cuda {

__device__ inline float Add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float Sub(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float Mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float Div(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float Sqrt(float a) { return __fsqrt_rn(a); }

__device__ inline float Expand(uint32_t bits, FloatType type) {
  if (type == FloatType::kBf16) return __uint_as_float(bits << 16);
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0x1F) {
    const uint32_t quiet = fraction != 0 ? 0x400000u : 0u;
    return __uint_as_float(sign | 0x7F800000u | quiet | fraction << 13);
  }
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  if (fraction == 0) return __uint_as_float(sign);
  // fraction * 2^-24, normal in fp32: the leading bit moves to where fp32 implies it.
  const auto shift = static_cast<uint32_t>(__clz(static_cast<int>(fraction))) - 8;
  return __uint_as_float(sign | (126 - shift) << 23 | ((fraction << shift) & 0x7FFFFFu));
}

// `x` without its low `shift` bits, rounded to nearest even. A carry into the exponent is right.
__device__ inline uint32_t DropBits(uint32_t x, uint32_t shift) {
  const uint32_t odd = (x >> shift) & 1u;
  return (x + ((1u << (shift - 1)) - 1) + odd) >> shift;
}

__device__ inline uint32_t Shrink(float value, FloatType type) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const bool is_nan = magnitude > 0x7F800000u;
  if (type == FloatType::kBf16) return is_nan ? 0x7FC0u : DropBits(bits, 16);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t exponent = magnitude >> 23;
  uint32_t result = 0;  // below half of the smallest subnormal
  if (is_nan) {
    result = 0x7E00u;
  } else if (exponent >= 143) {  // 2^16 and more
    result = 0x7C00u;
  } else if (exponent >= 113) {
    result = DropBits(magnitude - (112u << 23), 13);
  } else if (exponent >= 102) {
    result = DropBits((magnitude & 0x7FFFFFu) | 0x800000u, 126 - exponent);
  }
  return sign | result;
}

// Element i of `values`.
template <FloatType kType>
__device__ float Load(const void* values, size_t i) {
  if constexpr (kType == FloatType::kF32) {
    return static_cast<const float*>(values)[i];
  } else {
    return Expand(static_cast<const uint16_t*>(values)[i], kType);
  }
}

template <FloatType kType>
__device__ void Store(float value, void* values, size_t i) {
  if constexpr (kType == FloatType::kF32) {
    static_cast<float*>(values)[i] = value;
  } else {
    static_cast<uint16_t*>(values)[i] = static_cast<uint16_t>(Shrink(value, kType));
  }
}

// Values four by four: 16 bytes of fp32, 8 of the others. Vector i begins at element 4 * i.
inline constexpr size_t kVector = 4;

template <FloatType kType>
__device__ float4 LoadVector(const void* values, size_t i) {
  if constexpr (kType == FloatType::kF32) {
    return static_cast<const float4*>(values)[i];
  } else {
    const ushort4 v = static_cast<const ushort4*>(values)[i];
    return {Expand(v.x, kType), Expand(v.y, kType), Expand(v.z, kType), Expand(v.w, kType)};
  }
}

template <FloatType kType>
__device__ void StoreVector(float4 v, void* values, size_t i) {
  if constexpr (kType == FloatType::kF32) {
    static_cast<float4*>(values)[i] = v;
  } else {
    static_cast<ushort4*>(values)[i] = {
        static_cast<uint16_t>(Shrink(v.x, kType)), static_cast<uint16_t>(Shrink(v.y, kType)),
        static_cast<uint16_t>(Shrink(v.z, kType)), static_cast<uint16_t>(Shrink(v.w, kType))};
  }
}

}  // namespace sluice::cuda

#endif  // SLUICE_CORE_CUDA_FLOAT_CUH_
