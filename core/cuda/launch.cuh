// core/cuda/launch.cuh
//
// How the kernels are laid out over threads: a thread per vector where all pointers allow vectors,
// else a thread per element; and a call per float type.

#ifndef SLUICE_CORE_CUDA_LAUNCH_CUH_
#define SLUICE_CORE_CUDA_LAUNCH_CUH_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/grid.h"

namespace sluice::cuda {

inline constexpr unsigned kThreads = 256;  // of a block
inline constexpr size_t kBlocksMax = 1u << 16;

// Blocks for `items` items, a thread each; threads go on to further items if there are more.
inline unsigned BlocksFor(size_t items) {
  return static_cast<unsigned>(std::min(kBlocksMax, (items + kThreads - 1) / kThreads));
}

// This thread's first item, and how far the next is from there.
__device__ inline size_t FirstItem() {
  return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline size_t ItemStride() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

// Whether vectors of four values of `type` may be loaded from `values`.
inline bool AllowsVectors(const void* values, FloatType type) {
  return reinterpret_cast<uintptr_t>(values) % static_cast<size_t>(4 * SizeOf(type)) == 0;
}

// Calls function(std::integral_constant<FloatType, type>).
template <typename Function>
void WithType(FloatType type, Function function) {
  using enum FloatType;
  if (type == kF32) return function(std::integral_constant<FloatType, kF32>());
  if (type == kBf16) return function(std::integral_constant<FloatType, kBf16>());
  function(std::integral_constant<FloatType, kF16>());
}

}  // namespace sluice::cuda

#endif  // SLUICE_CORE_CUDA_LAUNCH_CUH_
