// core/device.h
//
// A Device is where the model computes: it has memory of its own (HBM), a link to host memory, and
// streams, which are queues whose operations run in order while different streams run side by side.
// It knows nothing of units or tiers.
//
// Implementations: CUDA (core/cuda_device.h), the host device (below), a first-class device for
// machines without a GPU, and a simulated one. The host device's HBM is a capped allocation in RAM;
// its streams are threads; its link and compute rates can be set, so that overlap can be measured
// without a GPU: an operation then takes at least bytes / rate, and compute sleeps instead of
// burning a core, as a GPU would.
//
// The caller of the runtime has streams of its own, on which the model computes. Fences
// (core/fence.h) order these and the device's streams: what must come after the work of another
// stream is put on its own when that has been told to wait. On the host device the caller computes
// before it calls, so its fences are complete at once, and it can't be made to wait.
//
// Streams never wait for each other in a ring, whoever waits for what: a stream waits for points
// that were recorded before, so for what was put on other streams before, and never for what is
// still to come.
//
// Threads: all calls may come from any thread. Memory: the caller owns an operation until its event
// was posted. Operations on one stream run in the order of Enqueue; nothing else is ordered across
// streams: without a fence, enqueue the second when the first has completed.

#ifndef SLUICE_CORE_DEVICE_H_
#define SLUICE_CORE_DEVICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/clock.h"
#include "core/dlpack.h"
#include "core/event.h"
#include "core/fence.h"
#include "core/intrusive_list.h"
#include "core/supplied_memory.h"
#include "core/types.h"

namespace sluice {

// kFence: for operations that do nothing but wait for the caller, so that nothing else does.
// kFetch: for copies to the device that wait for the caller too, and for none but the caller.
// kTake: for work on the device's memory that waits for the caller, so that computations don't.
enum class StreamKind : uint8_t { kHostToDevice, kDeviceToHost, kCompute, kFence, kFetch, kTake };
inline constexpr int kStreamCount = 6;
using StreamCounts = std::array<size_t, kStreamCount>;  // by StreamKind

// Arithmetic on the device's memory, as part of an operation.
class DeviceWork {
 public:
  virtual ~DeviceWork() = default;
  // On CUDA: puts the work on `stream`, a cudaStream_t of the thread's current GPU; its last error
  // afterwards is the operation's. Elsewhere `stream` is null and the calling thread, which flushes
  // subnormals, does the work before it returns. Must not block or throw; not called if the
  // operation has failed already.
  virtual void Launch(void* stream) = 0;
};

struct DeviceOp {
  StreamKind stream = StreamKind::kHostToDevice;
  // First the work, if any; then a copy of from.size() bytes, if `from` is not empty; then a
  // stand-in for a kernel, which takes `duration` on the host and simulated devices, and no time on
  // CUDA.
  DeviceWork* work = nullptr;  // not owned
  ConstMemoryView from;
  std::byte* to = nullptr;
  Nanos duration{0};
  // Written by the device, then `event` is posted to `inbox` (both not owned, both required).
  absl::Status status;
  TimePoint started{0};
  TimePoint finished{0};
  Inbox* inbox = nullptr;
  Event* event = nullptr;
  uint32_t device_slot = 0;  // the device's own, while it has the operation

 private:
  friend class IntrusiveList<DeviceOp>;
  DeviceOp* next_ = nullptr;
};

class Device {
 public:
  virtual ~Device() = default;  // waits for what is enqueued

  // Device memory, once, exactly `size` bytes. It may outlive the device. Errors: ResourceExhausted
  // naming what there is.
  virtual absl::StatusOr<Arena> MakeHbmArena(Bytes size) = 0;
  virtual void Enqueue(DeviceOp* op) = 0;
  // What is put on `stream` from now on starts when `fence` is complete. If the device refuses, the
  // next operation there ends with the error.
  virtual void OrderAfter(StreamKind stream, const Fence& fence) = 0;

  virtual StreamCounts pending() const = 0;  // operations enqueued and not yet ended
  // Forgets the operations that have not begun: they are not pending any more, and touch nothing.
  // On CUDA there are none, for an operation begins, behind others, when it is enqueued.
  virtual void Abandon() = 0;

  // Whether the host may read and write HBM itself, behind no link.
  virtual bool host_addressable() const = 0;

  // Tells the device of host memory that it will copy from and to, until the device is destroyed.
  // Errors: it could not be pinned, and why; copies then work, but slower.
  virtual absl::Status RegisterHost(MemoryView memory) = 0;

  // Whether work may be ordered after `stream` now. Errors: FailedPrecondition if the stream is
  // being captured into a graph; InvalidArgument for a name that means another on each thread.
  virtual absl::Status CheckStream(CallerStream stream) = 0;
  // The point that `stream` has reached. Errors: as CheckStream; Internal if the device refuses.
  virtual absl::StatusOr<Fence> RecordFence(CallerStream stream) = 0;

  // Whether callers' streams can wait for the device's; without that neither of these is called.
  virtual bool orders_callers() const = 0;
  // The point at which all that is on `stream` now has ended. Errors: that of an operation that
  // was refused there; Internal if the device refuses this.
  virtual absl::StatusOr<Fence> RecordEnd(StreamKind stream) = 0;
  // What is put on `stream` from now on runs after `fence`. Errors: as CheckStream; others if the
  // device refuses. Nothing is ordered then.
  virtual absl::Status OrderCallerAfter(CallerStream stream, const Fence& fence) = 0;

  // Where views of HBM say they are, in DLPack's terms.
  virtual DlDevice dl_device() const = 0;
  virtual std::string description() const = 0;  // for `sluice doctor`
};

struct HostDeviceOptions {
  Bytes hbm_limit = Bytes(INT64_MAX);   // MakeHbmArena refuses more
  double link_bytes_per_second = 0;     // per direction; 0: as fast as memcpy goes
  double compute_scale = 1.0;           // a compute operation takes duration * compute_scale
  std::shared_ptr<SuppliedMemory> hbm;  // if set, MakeHbmArena takes it
};

// `clock` and `resource` are not owned and outlive the device. Errors: ResourceExhausted if threads
// can't be started.
absl::StatusOr<std::unique_ptr<Device>> MakeHostDevice(const HostDeviceOptions& options,
                                                       Clock* clock, MemoryResource* resource);

}  // namespace sluice

#endif  // SLUICE_CORE_DEVICE_H_
