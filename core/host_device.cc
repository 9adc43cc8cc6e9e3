#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>

#include "core/config.h"
#include "core/device.h"
#include "core/executor.h"
#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// One thread per stream; it sleeps where a GPU would compute.
class HostDevice final : public Device {
 public:
  HostDevice(const HostDeviceOptions& options, Clock* clock, MemoryResource* resource)
      : options_(options), clock_(clock), resource_(resource) {}
  ~HostDevice() override {
    for (Stream& stream : streams_) {
      stream.queue.Stop();
      if (stream.thread.joinable()) stream.thread.join();
    }
  }

  absl::Status Start() {
    try {
      for (Stream& stream : streams_)
        stream.thread = std::thread([this, &stream] { Work(&stream); });
    } catch (const std::system_error& e) {
      return absl::ResourceExhaustedError(
          fmt::format("the host device's threads can't be started: {}", e.what()));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override {
    if (size > options_.hbm_limit) {
      return absl::ResourceExhaustedError(
          fmt::format("{} of HBM were asked for, but the host device is limited to {}",
                      FormatBytesUp(size), FormatBytesDown(options_.hbm_limit)));
    }
    if (options_.hbm != nullptr) return SuppliedMemory::MakeArena(options_.hbm, size, dl_device());
    return Arena::Create(resource_, size);
  }

  void Enqueue(DeviceOp* op) override {
    Stream& stream = streams_[QueueOf(op->stream)];
    ++stream.pending;
    stream.queue.Push(op);
  }
  void OrderAfter(StreamKind, const Fence& fence) override {
    SLUICE_CHECK(fence.Complete());  // all of this device's are
  }
  StreamCounts pending() const override {
    StreamCounts counts{};
    for (size_t s = 0; s < streams_.size(); ++s) counts[s] = streams_[s].pending;
    return counts;
  }
  void Abandon() override {
    for (Stream& stream : streams_) stream.pending -= stream.queue.Drop();
  }

  bool host_addressable() const override { return options_.link_bytes_per_second == 0; }
  absl::Status RegisterHost(MemoryView) override { return absl::OkStatus(); }
  absl::Status CheckStream(CallerStream) override { return absl::OkStatus(); }
  absl::StatusOr<Fence> RecordFence(CallerStream) override { return Fence(); }
  bool orders_callers() const override { return false; }
  absl::StatusOr<Fence> RecordEnd(StreamKind) override {
    return absl::UnimplementedError("the host device's caller computes before it calls");
  }
  absl::Status OrderCallerAfter(CallerStream, const Fence&) override {
    return absl::UnimplementedError("the host device's caller computes before it calls");
  }
  DlDevice dl_device() const override { return {.device_type = kDlCpu, .device_id = 0}; }

  std::string description() const override {
    return options_.link_bytes_per_second > 0
               ? fmt::format(
                     "host: RAM as HBM, link modelled at {}/s",
                     FormatBytes(Bytes(static_cast<int64_t>(options_.link_bytes_per_second))))
               : "host: RAM as HBM, copies at memory speed";
  }

 private:
  struct Stream {
    WorkQueue<DeviceOp> queue;
    std::atomic<size_t> pending{0};
    std::thread thread;
  };

  // One queue for each direction of the link, and one for work: nothing has to wait for the caller.
  static size_t QueueOf(StreamKind stream) {
    if (stream == StreamKind::kFetch) stream = StreamKind::kHostToDevice;
    if (stream == StreamKind::kTake) stream = StreamKind::kCompute;
    return static_cast<size_t>(stream);
  }

  void Work(Stream* stream) {
    pthread_setname_np(pthread_self(), "sluice-stream");
    while (DeviceOp* op = stream->queue.Pop()) Execute(stream, op);
  }

  void Execute(Stream* stream, DeviceOp* op) {
    op->started = clock_->Now();
    Nanos modelled(
        static_cast<int64_t>(static_cast<double>(op->duration.count()) * options_.compute_scale));
    if (op->work != nullptr) {
      const ScopedFlushDenormals flush;
      op->work->Launch(nullptr);
    }
    if (!op->from.empty()) {
      std::memcpy(op->to, op->from.data(), op->from.size());
      if (options_.link_bytes_per_second > 0) {
        modelled += Nanos(static_cast<int64_t>(static_cast<double>(op->from.size()) /
                                               options_.link_bytes_per_second * 1e9));
      }
    }
    const Nanos left = op->started + modelled - clock_->Now();
    if (left > Nanos(0)) std::this_thread::sleep_for(left);
    op->finished = clock_->Now();
    op->status = absl::OkStatus();
    --stream->pending;
    op->inbox->Post(op->event);
  }

  const HostDeviceOptions options_;
  Clock* const clock_;
  MemoryResource* const resource_;
  std::array<Stream, kStreamCount - 2> streams_;  // all but kFetch and kTake, the last ones
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeHostDevice(const HostDeviceOptions& options,
                                                       Clock* clock, MemoryResource* resource) {
  auto device = std::make_unique<HostDevice>(options, clock, resource);
  SLUICE_RETURN_IF_ERROR(device->Start());
  return device;
}

}  // namespace sluice
