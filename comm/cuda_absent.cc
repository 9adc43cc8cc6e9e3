// What stands in for comm/cuda/ in a build without CUDA: no device can have a stream to call it
// with.

#include "comm/cuda/kernels.h"
#include "core/status.h"

namespace sluice::cuda {

void OrderedSum(const Addends&, FloatType, float, void*, size_t, void*) {
  SLUICE_CHECK_MSG(false, "a CUDA kernel is asked for in a build without CUDA");
}

}  // namespace sluice::cuda
