// optim/cuda/kernels.h
//
// The functions of adamw.h, convert.h and norm.h as CUDA kernels: the same bits, but for which NaN
// comes of a NaN. A call puts its work on `stream`, a cudaStream_t of the current device, and
// returns; spans and pointers are in memory that the device reaches, and stay until the stream has
// run it. Subnormals of fp32 count as zero in arithmetic, as on the CPU's workers; conversions keep
// them. What went wrong with a launch is CUDA's last error (cudaGetLastError), which the device
// that owns the stream asks for.
//
// In a build without CUDA the same functions exist, and only a bug can call them: there is no
// stream to call them with.
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_OPTIM_CUDA_KERNELS_H_
#define SLUICE_OPTIM_CUDA_KERNELS_H_

#include <cstddef>

#include "core/grid.h"
#include "optim/adamw.h"

namespace sluice::cuda {

void AdamWUpdate(const AdamWCoefficients& coefficients, const AdamWSpans& spans, void* stream);

void Copy(void* to, const void* from, size_t bytes, void* stream);
void Zero(void* to, size_t bytes, void* stream);

void Convert(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n,
             void* stream);

void Accumulate(void* into, const void* from, FloatType type, size_t n, void* stream);

// sums[i] = the sum of squares of cell i of the `n` values; one for each cell (core/grid.h).
void CellSquareSums(const void* values, FloatType type, size_t n, double* sums, void* stream);

}  // namespace sluice::cuda

#endif  // SLUICE_OPTIM_CUDA_KERNELS_H_
