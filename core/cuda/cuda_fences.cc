#include "core/cuda/cuda_fences.h"

#include "core/cuda/cuda_status.h"
#include "core/status.h"

namespace sluice {

CudaFences::~CudaFences() {
  const CudaScope scope(device_);
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

absl::StatusOr<uint32_t> CudaFences::Record(cudaStream_t stream) {
  const CudaScope scope(device_);
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    cudaEvent_t event = nullptr;
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                                      "making an event for a fence"));
    free_.push_back(static_cast<uint32_t>(events_.size()));
    events_.push_back(event);
  }
  const uint32_t point = free_.back();
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaEventRecord(events_[point], stream), "recording a fence on a stream"));
  free_.pop_back();
  return point;
}

bool CudaFences::Complete(uint32_t point) {
  const CudaScope scope(device_);
  return cudaEventQuery(event(point)) != cudaErrorNotReady;
}

void CudaFences::Return(uint32_t point) {
  const std::lock_guard lock(mutex_);
  free_.push_back(point);
}

cudaEvent_t CudaFences::event(uint32_t point) {
  const std::lock_guard lock(mutex_);
  return events_[point];
}

}  // namespace sluice
