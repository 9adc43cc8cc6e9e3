// What stands in for core/cuda/ in a build without CUDA.

#include "core/cuda_device.h"
#include "core/side_stream.h"

namespace sluice {

namespace {
absl::Status BuiltWithout() {
  return absl::UnavailableError(
      "built without CUDA (configure with -DSLUICE_CUDA=ON on a machine that has nvcc)");
}
}  // namespace

absl::StatusOr<CudaProbe> ProbeCuda(int) { return BuiltWithout(); }

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions&, Clock*) {
  return BuiltWithout();
}

absl::StatusOr<std::unique_ptr<SideStream>> MakeCudaSideStream(int, Bytes) {
  return BuiltWithout();
}

}  // namespace sluice
