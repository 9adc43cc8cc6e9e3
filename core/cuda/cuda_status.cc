#include "core/cuda/cuda_status.h"

#include "fmt/format.h"

namespace sluice {

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string words =
      fmt::format("{}: {} ({})", what, cudaGetErrorName(error), cudaGetErrorString(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(words);
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorDevicesUnavailable:
    case cudaErrorCompatNotSupportedOnDevice:
      return absl::UnavailableError(words);
    default:
      return absl::InternalError(words);
  }
}

CudaScope::CudaScope(int index) {
  int current = index;
  if (cudaGetDevice(&current) == cudaSuccess && current != index &&
      cudaSetDevice(index) == cudaSuccess) {
    restored_ = current;
  }
  cudaThreadExchangeStreamCaptureMode(&mode_);
}

CudaScope::~CudaScope() {
  cudaThreadExchangeStreamCaptureMode(&mode_);
  if (restored_ >= 0) cudaSetDevice(restored_);
}

}  // namespace sluice
