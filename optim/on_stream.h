// optim/on_stream.h
//
// The arithmetic of a step where its memory is: on a stream of a GPU, with the kernels of
// optim/cuda/, or here and now. The same bits in either place. `stream` is a cudaStream_t, whose
// GPU is the thread's current one, or null: then the memory is the host's, and the work is done by
// the calling thread, which has FTZ and DAZ set (core/executor.h), when the call returns.
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_OPTIM_ON_STREAM_H_
#define SLUICE_OPTIM_ON_STREAM_H_

#include <cstddef>

#include "core/grid.h"
#include "optim/adamw.h"

namespace sluice {

// As AdamWUpdate of adamw.h.
void AdamWUpdateOn(void* stream, const AdamWCoefficients& coefficients, const AdamWSpans& spans);

void CopyOn(void* stream, void* to, const void* from, size_t bytes);
void ZeroOn(void* stream, void* to, size_t bytes);

// As Accumulate of convert.h.
void AccumulateOn(void* stream, void* into, const void* from, FloatType type, size_t n);

// CellSquareSum of norm.h of each cell of the `n` values at `values`, the last one shorter: into
// sums[0], sums[1] and so on.
void CellSquareSumsOn(void* stream, const void* values, FloatType type, size_t n, double* sums);

}  // namespace sluice

#endif  // SLUICE_OPTIM_ON_STREAM_H_
