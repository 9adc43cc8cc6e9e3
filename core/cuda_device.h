// core/cuda_device.h
//
// A CUDA GPU as a Device. Everything of CUDA's is behind this header: in a build without CUDA the
// same functions exist and say so.
//
// It has a stream of its own for each StreamKind, never uses the default stream, and never
// synchronises the device. Enqueue puts an operation on its stream in the calling thread; a thread
// per stream sleeps until the operation's event has passed, then posts its completion. Errors carry
// CUDA's own names. The CUDA runtime is linked statically and looks for a driver when first used,
// so the same library starts on machines without one.
//
// Threads: as Device. Allocates at construction, and events whenever more are in flight than ever
// before.

#ifndef SLUICE_CORE_CUDA_DEVICE_H_
#define SLUICE_CORE_CUDA_DEVICE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/supplied_memory.h"

namespace sluice {

struct CudaProbe {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int compute_major = 0;
  int compute_minor = 0;
  Bytes memory_free;
  Bytes memory_total;
  std::string pci_address;  // "0000:3b:00.0"
};

// The GPU with number `index`, started if it was not. Errors: Unavailable if this build has no
// CUDA, there is no driver or no GPU; InvalidArgument if there are fewer GPUs.
absl::StatusOr<CudaProbe> ProbeCuda(int index);

struct CudaDeviceOptions {
  int index = 0;
  std::shared_ptr<SuppliedMemory> hbm;  // if set, MakeHbmArena takes it; else cudaMalloc
  Bytes register_bytes_max = GiB(64);   // host memory pinned by one call
};

// `clock` is not owned and outlives the device. Errors: as ProbeCuda; ResourceExhausted if streams
// or threads can't be had.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options,
                                                       Clock* clock);

}  // namespace sluice

#endif  // SLUICE_CORE_CUDA_DEVICE_H_
