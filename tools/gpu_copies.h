// tools/gpu_copies.h
//
// Copies between pinned memory and a GPU's through the CUDA device, and by a plain loop of
// cudaMemcpyAsync on cudaMallocHost's memory, which is their limit. In a build without CUDA only
// the reason is had.
//
// Threads: one. The memory is what is near the calling thread.

#ifndef SLUICE_TOOLS_GPU_COPIES_H_
#define SLUICE_TOOLS_GPU_COPIES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice::tools {

enum class CopyWay : uint8_t { kToDevice, kToHost, kBoth };
const char* Name(CopyWay way);

inline constexpr Bytes kGpuBuffer = MiB(256);  // each way

class GpuCopies {
 public:
  virtual ~GpuCopies() = default;
  // Seconds for `count` copies of `size` bytes (at most kGpuBuffer), each way.
  virtual double PlainSeconds(CopyWay way, Bytes size, int64_t count) = 0;
  virtual double DeviceSeconds(CopyWay way, Bytes size, int64_t count) = 0;
  virtual std::string description() const = 0;  // the device's
};

// Of the GPU with number `index`. Errors: as ProbeCuda; what can't be had of it.
absl::StatusOr<std::unique_ptr<GpuCopies>> MakeGpuCopies(int index);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_GPU_COPIES_H_
