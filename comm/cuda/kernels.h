// comm/cuda/kernels.h
//
// OrderedSumOn (comm/ordered_reduce.h) as a CUDA kernel: the same bits, but for which NaN comes of
// NaNs. It puts its work on `stream`, a cudaStream_t of the current device, and returns; pointers
// are of memory that the device reaches, and stay until the stream has run it. What went wrong with
// the launch is CUDA's last error. In a build without CUDA only a bug can call it.
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_COMM_CUDA_KERNELS_H_
#define SLUICE_COMM_CUDA_KERNELS_H_

#include <cstddef>

#include "comm/ordered_reduce.h"
#include "core/grid.h"

namespace sluice::cuda {

void OrderedSum(const Addends& from, FloatType type, float scale, void* to, size_t n, void* stream);

}  // namespace sluice::cuda

#endif  // SLUICE_COMM_CUDA_KERNELS_H_
