// core/device.h
//
// A Device is where the model computes: it has memory of its own (HBM), a link to host memory, and
// streams, which are queues whose operations run in order while different streams run side by side.
// It knows nothing of units or tiers.
//
// Implementations: the host device (below), a first-class device for machines without a GPU, and a
// simulated one. The host device's HBM is a capped allocation in RAM; its streams are threads; its
// link and compute rates can be set, so that overlap can be measured without a GPU: an operation
// then takes at least bytes / rate, and compute sleeps instead of burning a core, as a GPU would.
//
// Threads: Enqueue may be called from any thread. Memory: the caller owns an operation until its
// event was posted. Operations on one stream run in the order of Enqueue; nothing is ordered across
// streams: to order them, enqueue the second when the first has completed.

#ifndef SLUICE_CORE_DEVICE_H_
#define SLUICE_CORE_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/types.h"

namespace sluice {

enum class StreamKind : uint8_t { kHostToDevice, kDeviceToHost, kCompute };
inline constexpr int kStreamCount = 3;

struct DeviceOp {
  StreamKind stream = StreamKind::kHostToDevice;
  // A copy of from.size() bytes if `from` is not empty, else a stand-in for a kernel that takes
  // `duration`.
  ConstMemoryView from;
  std::byte* to = nullptr;
  Nanos duration{0};
  // Written by the device, then `event` is posted to `inbox` (both not owned, both required).
  absl::Status status;
  TimePoint started{0};
  TimePoint finished{0};
  Inbox* inbox = nullptr;
  Event* event = nullptr;

 private:
  friend class DeviceQueue;
  DeviceOp* next_ = nullptr;
};

class Device {
 public:
  virtual ~Device() = default;  // waits for what is enqueued

  // Device memory, once, exactly `size` bytes. Errors: ResourceExhausted naming what there is.
  virtual absl::StatusOr<Arena> MakeHbmArena(Bytes size) = 0;
  virtual void Enqueue(DeviceOp* op) = 0;
  virtual std::string description() const = 0;  // for `sluice doctor`
};

struct HostDeviceOptions {
  Bytes hbm_limit = Bytes(INT64_MAX);  // MakeHbmArena refuses more
  double link_bytes_per_second = 0;    // per direction; 0: as fast as memcpy goes
  double compute_scale = 1.0;          // a compute operation takes duration * compute_scale
};

// `clock` and `resource` are not owned and outlive the device.
std::unique_ptr<Device> MakeHostDevice(const HostDeviceOptions& options, Clock* clock,
                                       MemoryResource* resource);

}  // namespace sluice

#endif  // SLUICE_CORE_DEVICE_H_
