// core/side_stream.h
//
// A SideStream is a stream of a device that some library puts work on by itself: a library of
// ranks' communication takes the stream's handle, and whoever drives it copies on the same stream
// and asks how far it has come. It belongs to nobody else: no work of a Device's runs on it.
//
// Implementations: CUDA (core/cuda/), and what tests have.
//
// Threads: one at a time, which has called Bind. Nothing here blocks. Allocates at construction,
// and marks whenever more of them are open than ever before.

#ifndef SLUICE_CORE_SIDE_STREAM_H_
#define SLUICE_CORE_SIDE_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

class SideStream {
 public:
  // What is on it must have run. If that can't be had, the object must never be destroyed.
  virtual ~SideStream() = default;

  // Makes the stream's device the calling thread's, for good: libraries ask the thread for it.
  virtual absl::Status Bind() = 0;
  virtual void* handle() const = 0;  // a cudaStream_t on CUDA
  // Memory of the device for who uses the stream; as large as was asked for when it was made.
  virtual MemoryView staging() const = 0;

  // Copies behind what is on the stream; both sides are memory of the device. Errors: the device
  // refuses.
  virtual absl::Status Copy(ConstMemoryView from, std::byte* to) = 0;
  // The point that the stream has reached: 1, 2, ... Errors: the device refuses.
  virtual absl::StatusOr<uint64_t> Mark() = 0;
  // Whether all that was on the stream at the mark has run. Errors: the device has failed, and runs
  // nothing any more.
  virtual absl::StatusOr<bool> Passed(uint64_t mark) = 0;

  virtual std::string description() const = 0;  // "CUDA GPU 0"
};

// On the GPU with number `index`, ahead of other streams where the GPU can. Errors: as ProbeCuda
// (core/cuda_device.h); ResourceExhausted if stream or staging can't be had.
absl::StatusOr<std::unique_ptr<SideStream>> MakeCudaSideStream(int index, Bytes staging);

}  // namespace sluice

#endif  // SLUICE_CORE_SIDE_STREAM_H_
