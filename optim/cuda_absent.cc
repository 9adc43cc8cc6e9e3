// What stands in for optim/cuda/ in a build without CUDA: no device can have a stream to call it
// with.

#include "core/status.h"
#include "optim/cuda/kernels.h"

namespace sluice::cuda {

namespace {
[[noreturn]] void Never() {
  SLUICE_CHECK_MSG(false, "a CUDA kernel is asked for in a build without CUDA");
  __builtin_unreachable();
}
}  // namespace

void AdamWUpdate(const AdamWCoefficients&, const AdamWSpans&, void*) { Never(); }
void Copy(void*, const void*, size_t, void*) { Never(); }
void Zero(void*, size_t, void*) { Never(); }
void Convert(const void*, FloatType, void*, FloatType, size_t, void*) { Never(); }
void Accumulate(void*, const void*, FloatType, size_t, void*) { Never(); }
void CellSquareSums(const void*, FloatType, size_t, double*, void*) { Never(); }

}  // namespace sluice::cuda
