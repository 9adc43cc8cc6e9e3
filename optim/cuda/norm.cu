// Sums of squares on a GPU, in the order of optim/norm.h: eight threads per cell, one for each
// lane, which neighbours in memory feed. What they add up in the end passes from thread to thread.

#include "core/cuda/float.cuh"
#include "core/cuda/launch.cuh"
#include "optim/cuda/kernels.h"

namespace sluice::cuda {

namespace {

constexpr unsigned kLanes = 8;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// A subnormal is a zero, as where the CPU widens it with DAZ set.
__device__ double Square(float value) {
  const bool subnormal = (__float_as_uint(value) & 0x7F800000u) == 0;
  const double wide = subnormal ? 0.0 : static_cast<double>(value);
  return __dmul_rn(wide, wide);
}

// Items are lanes of cells. A cell's eight threads stay together, also those beyond the last cell.
template <FloatType kType>
__global__ void SumCells(const void* values, size_t n, double* sums) {
  const size_t cells = (n + kCellElements - 1) / kCellElements;
  const unsigned lane = threadIdx.x % kLanes;
  const size_t cell = FirstItem() / kLanes;
  const size_t begin = cell * kCellElements;
  const size_t end = cell < cells ? min(n, begin + kCellElements) : 0;
  double sum = 0;
#pragma unroll 8
  for (size_t i = begin + lane; i < end; i += kLanes)
    sum = __dadd_rn(sum, Square(Load<kType>(values, i)));
  // ((0+4)+(2+6))+((1+5)+(3+7))
  sum = __dadd_rn(sum, __shfl_down_sync(kWholeWarp, sum, 4, kLanes));
  sum = __dadd_rn(sum, __shfl_down_sync(kWholeWarp, sum, 2, kLanes));
  sum = __dadd_rn(sum, __shfl_down_sync(kWholeWarp, sum, 1, kLanes));
  if (lane == 0 && cell < cells) sums[cell] = sum;
}

}  // namespace

void CellSquareSums(const void* values, FloatType type, size_t n, double* sums, void* stream) {
  const size_t items = static_cast<size_t>(CellCount(static_cast<int64_t>(n))) * kLanes;
  if (items == 0) return;
  const auto blocks = static_cast<unsigned>((items + kThreads - 1) / kThreads);
  WithType(type, [&](auto t) {
    SumCells<decltype(t)::value>
        <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(values, n, sums);
  });
}

}  // namespace sluice::cuda
