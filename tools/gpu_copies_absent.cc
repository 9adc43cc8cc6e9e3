#include "core/cuda_device.h"
#include "core/status.h"
#include "tools/gpu_copies.h"

namespace sluice::tools {

absl::StatusOr<std::unique_ptr<GpuCopies>> MakeGpuCopies(int index) {
  SLUICE_RETURN_IF_ERROR(ProbeCuda(index).status());
  return absl::UnavailableError("this build has no CUDA");
}

}  // namespace sluice::tools
