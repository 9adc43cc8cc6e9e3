// core/cuda/cuda_fences.h
//
// CUDA events that stand for points in streams: one event per fence that is alive, used again when
// its fence is gone. A stream that was told to wait for one waits for what had been recorded then
// (cudaStreamWaitEvent), whatever becomes of the event.
//
// Threads: any. Allocates when more fences are alive than ever before.

#ifndef SLUICE_CORE_CUDA_CUDA_FENCES_H_
#define SLUICE_CORE_CUDA_CUDA_FENCES_H_

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "core/fence.h"

namespace sluice {

class CudaFences final : public FencePool {
 public:
  explicit CudaFences(int device) : device_(device) {}
  ~CudaFences() override;

  // The point that `stream` has reached. Errors: see CudaStatus.
  absl::StatusOr<uint32_t> Record(cudaStream_t stream);

  // Also true after an error of the device, which the next operation reports.
  bool Complete(uint32_t point) override;
  void Return(uint32_t point) override;
  cudaEvent_t event(uint32_t point);

 private:
  const int device_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> events_;  // guarded by mutex_
  std::vector<uint32_t> free_;       // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_CORE_CUDA_CUDA_FENCES_H_
