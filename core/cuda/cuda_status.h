// core/cuda/cuda_status.h
//
// What the CUDA runtime says, as statuses with CUDA's own names, and the state that CUDA keeps per
// thread, set for one scope. Included by what stands in core/cuda/ only.

#ifndef SLUICE_CORE_CUDA_CUDA_STATUS_H_
#define SLUICE_CORE_CUDA_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace sluice {

// "<what>: <cudaErrorName> (<CUDA's words>)". Out of memory is ResourceExhausted; no driver, no GPU
// and a driver that is too old are Unavailable; everything else is Internal. Success is ok.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// For its life, the calling thread's current device is `index`, and the thread may call CUDA while
// others capture graphs. Then both are as they were.
class CudaScope {
 public:
  explicit CudaScope(int index);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

 private:
  int restored_ = -1;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace sluice

#endif  // SLUICE_CORE_CUDA_CUDA_STATUS_H_
