#include "core/cuda_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/config.h"
#include "core/cuda/cuda_fences.h"
#include "core/cuda/cuda_status.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// The number of `to - from` milliseconds between two events that have passed.
Nanos Elapsed(cudaEvent_t from, cudaEvent_t to) {
  float milliseconds = 0;
  if (cudaEventElapsedTime(&milliseconds, from, to) != cudaSuccess) return Nanos(0);
  return Nanos(static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6));
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDeviceOptions& options, CudaProbe probe, Clock* clock)
      : options_(options),
        probe_(std::move(probe)),
        clock_(clock),
        fences_(std::make_shared<CudaFences>(options.index)) {}

  absl::Status Init() {
    const CudaScope scope(options_.index);
    for (Stream& stream : streams_) {
      SLUICE_RETURN_IF_ERROR(CudaStatus(
          cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking), "making a stream"));
      try {
        stream.waiter = std::thread([this, &stream] { Wait(&stream); });
      } catch (const std::system_error& e) {
        return absl::ResourceExhaustedError(
            fmt::format("a thread that waits for a stream can't be started: {}", e.what()));
      }
    }
    return absl::OkStatus();
  }

  ~CudaDevice() override {
    const CudaScope scope(options_.index);
    for (Stream& stream : streams_) {
      {
        const std::lock_guard lock(stream.mutex);
        stream.stopping = true;
      }
      stream.changed.notify_all();
      if (stream.waiter.joinable()) stream.waiter.join();
      if (stream.handle != nullptr) cudaStreamDestroy(stream.handle);
    }
    for (const Marks& marks : marks_) {
      cudaEventDestroy(marks.begin);
      cudaEventDestroy(marks.end);
    }
    for (MemoryView memory : registered_) cudaHostUnregister(memory.data());
  }

  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override {
    if (size == Bytes(0)) return Arena();
    if (options_.hbm != nullptr) return SuppliedMemory::MakeArena(options_.hbm, size, dl_device());
    const CudaScope scope(options_.index);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, size.size());
    if (error != cudaSuccess) {
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return CudaStatus(
          error, fmt::format("{} of HBM were asked for; {} has {} free of {}", FormatBytes(size),
                             probe_.name, FormatBytes(Bytes(static_cast<int64_t>(free))),
                             FormatBytes(Bytes(static_cast<int64_t>(total)))));
    }
    std::shared_ptr<void> owner(memory, [index = options_.index](void* p) {
      const CudaScope owner_scope(index);
      cudaFree(p);
    });
    return Arena::Over({static_cast<std::byte*>(memory), size.size()}, std::move(owner));
  }

  void Enqueue(DeviceOp* op) override {
    const CudaScope scope(options_.index);
    Stream& stream = streams_[static_cast<size_t>(op->stream)];
    {
      const std::lock_guard lock(stream.mutex);
      op->device_slot = kNoMarks;
      op->status = std::exchange(stream.refused, absl::OkStatus());
      if (op->status.ok()) op->status = Issue(stream.handle, op);
      if (stream.failed.ok()) stream.failed = op->status;
      stream.queue.Push(op);
      ++stream.pending;
    }
    stream.changed.notify_one();
  }
  void OrderAfter(StreamKind kind, const Fence& fence) override {
    if (!fence.recorded()) return;
    const CudaScope scope(options_.index);
    Stream& stream = streams_[static_cast<size_t>(kind)];
    const std::lock_guard lock(stream.mutex);
    const absl::Status status =
        CudaStatus(cudaStreamWaitEvent(stream.handle, fences_->event(fence.point()), 0),
                   "waiting for a fence");
    if (stream.refused.ok()) stream.refused = status;
  }
  StreamCounts pending() const override {
    StreamCounts counts{};
    for (size_t s = 0; s < counts.size(); ++s) counts[s] = streams_[s].pending;
    return counts;
  }
  void Abandon() override {}

  bool host_addressable() const override { return false; }

  absl::Status RegisterHost(MemoryView memory) override {
    const CudaScope scope(options_.index);
    const size_t first = registered_.size();
    while (!memory.empty()) {
      const MemoryView chunk =
          memory.first(std::min(memory.size(), options_.register_bytes_max.size()));
      const cudaError_t error =
          cudaHostRegister(chunk.data(), chunk.size(), cudaHostRegisterPortable);
      if (error != cudaSuccess) {
        while (registered_.size() > first) {
          cudaHostUnregister(registered_.back().data());
          registered_.pop_back();
        }
        cudaGetLastError();  // it is reported here, and not by whoever asks next
        return CudaStatus(
            error, fmt::format("cudaHostRegister refused {} of host memory, so copies are slower",
                               FormatBytes(Bytes(static_cast<int64_t>(chunk.size())))));
      }
      registered_.push_back(chunk);
      memory = memory.subspan(chunk.size());
    }
    return absl::OkStatus();
  }

  absl::Status CheckStream(CallerStream stream) override {
    if (stream.handle == cudaStreamPerThread) {
      return absl::InvalidArgumentError(
          "cudaStreamPerThread is another stream on each thread: pass one that was made, or null");
    }
    const CudaScope scope(options_.index);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const cudaError_t error =
        cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &capture);
    if (error == cudaErrorStreamCaptureImplicit || capture != cudaStreamCaptureStatusNone) {
      return absl::FailedPreconditionError(
          "the stream is being captured into a CUDA graph: memory that is moved between tiers "
          "can't be part of a graph; capture what lies outside the offloaded modules");
    }
    return CudaStatus(error, "asking a caller's stream whether it is being captured");
  }

  absl::StatusOr<Fence> RecordFence(CallerStream stream) override {
    SLUICE_RETURN_IF_ERROR(CheckStream(stream));
    SLUICE_ASSIGN_OR_RETURN(const uint32_t point,
                            fences_->Record(static_cast<cudaStream_t>(stream.handle)));
    return Fence(fences_, point);
  }

  bool orders_callers() const override { return true; }
  absl::StatusOr<Fence> RecordEnd(StreamKind kind) override {
    Stream& stream = streams_[static_cast<size_t>(kind)];
    const std::lock_guard lock(stream.mutex);
    SLUICE_RETURN_IF_ERROR(stream.failed);
    SLUICE_ASSIGN_OR_RETURN(const uint32_t point, fences_->Record(stream.handle));
    return Fence(fences_, point);
  }
  absl::Status OrderCallerAfter(CallerStream stream, const Fence& fence) override {
    SLUICE_RETURN_IF_ERROR(CheckStream(stream));
    if (!fence.recorded()) return absl::OkStatus();
    const CudaScope scope(options_.index);
    return CudaStatus(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.handle),
                                          fences_->event(fence.point()), 0),
                      "letting a caller's stream wait for a copy");
  }

  DlDevice dl_device() const override {
    return {.device_type = kDlCuda, .device_id = options_.index};
  }

  std::string description() const override {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    return fmt::format("CUDA: {} (device {}, compute {}.{}, {}), driver {}.{}, runtime {}.{}",
                       probe_.name, options_.index, probe_.compute_major, probe_.compute_minor,
                       FormatBytes(probe_.memory_total), driver / 1000, driver % 1000 / 10,
                       runtime / 1000, runtime % 1000 / 10);
  }

 private:
  // The events around one operation.
  struct Marks {
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
  };
  static constexpr uint32_t kNoMarks = UINT32_MAX;          // nothing is on the stream
  static constexpr uint32_t kEndUnmarked = UINT32_MAX - 1;  // something is
  struct Stream {
    cudaStream_t handle = nullptr;
    std::mutex mutex;  // also: the order of the queue is the order on the stream
    std::condition_variable changed;
    IntrusiveList<DeviceOp> queue;  // guarded by mutex
    absl::Status refused;           // guarded by mutex; a wait that the next operation relies on
    absl::Status failed;            // guarded by mutex; of the first operation that was not issued
    bool stopping = false;          // guarded by mutex
    std::atomic<size_t> pending{0};
    std::thread waiter;
  };

  absl::StatusOr<uint32_t> TakeMarks() {
    const std::lock_guard lock(marks_mutex_);
    if (free_marks_.empty()) {
      Marks marks;
      SLUICE_RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&marks.begin), "making an event"));
      SLUICE_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&marks.end, cudaEventBlockingSync),
                                        "making an event"));
      free_marks_.push_back(static_cast<uint32_t>(marks_.size()));
      marks_.push_back(marks);
    }
    const uint32_t slot = free_marks_.back();
    free_marks_.pop_back();
    return slot;
  }

  Marks MarksOf(uint32_t slot) {
    const std::lock_guard lock(marks_mutex_);
    return marks_[slot];
  }

  void GiveMarks(uint32_t slot) {
    const std::lock_guard lock(marks_mutex_);
    free_marks_.push_back(slot);
  }

  // Puts `op` on the stream, between two marks. Where a part of it fails, those before it are on
  // the stream and may run: the operation ends, with that error, behind them. Without marks there
  // is nothing to wait for.
  absl::Status Issue(cudaStream_t stream, DeviceOp* op) {
    SLUICE_ASSIGN_OR_RETURN(const uint32_t slot, TakeMarks());
    const Marks marks = MarksOf(slot);
    absl::Status status = CudaStatus(cudaEventRecord(marks.begin, stream), "marking a stream");
    if (!status.ok()) {
      GiveMarks(slot);
      return status;
    }
    op->device_slot = slot;
    if (op->work != nullptr) {
      cudaGetLastError();  // what others left behind was theirs to report
      op->work->Launch(stream);
      status = CudaStatus(cudaGetLastError(), "launching kernels");
    }
    if (status.ok()) status = IssueCopy(stream, *op);
    const absl::Status marked = CudaStatus(cudaEventRecord(marks.end, stream), "marking a stream");
    if (!marked.ok()) op->device_slot = kEndUnmarked;
    if (!marked.ok()) GiveMarks(slot);
    return status.ok() ? marked : status;
  }

  // One copy, cut where host memory was registered in pieces.
  absl::Status IssueCopy(cudaStream_t stream, const DeviceOp& op) {
    size_t done = 0;
    while (done < op.from.size()) {
      const size_t n = std::min(RegisteredRun(op.from.data() + done, op.from.size() - done),
                                RegisteredRun(op.to + done, op.from.size() - done));
      const cudaError_t error =
          cudaMemcpyAsync(op.to + done, op.from.data() + done, n, cudaMemcpyDefault, stream);
      if (error != cudaSuccess) {
        return CudaStatus(
            error,
            fmt::format("copying {}", FormatBytes(Bytes(static_cast<int64_t>(op.from.size())))));
      }
      done += n;
    }
    return absl::OkStatus();
  }

  // How many of the `size` bytes at `at` lie in one piece of registered memory, or outside of all.
  size_t RegisteredRun(const std::byte* at, size_t size) const {
    for (MemoryView piece : registered_) {
      if (at >= piece.data() && at < piece.data() + piece.size())
        return std::min(size, static_cast<size_t>(piece.data() + piece.size() - at));
    }
    return size;
  }

  void Wait(Stream* stream) {
    const CudaScope scope(options_.index);
    for (;;) {
      DeviceOp* op = nullptr;
      {
        std::unique_lock lock(stream->mutex);
        stream->changed.wait(lock, [stream] { return stream->stopping || !stream->queue.empty(); });
        if (stream->queue.empty()) return;
        op = stream->queue.Pop();
      }
      Finish(stream, op);
    }
  }

  void Finish(Stream* stream, DeviceOp* op) {
    Nanos took{0};
    absl::Status passed;
    if (op->device_slot == kEndUnmarked) {
      passed = CudaStatus(cudaStreamSynchronize(stream->handle), "waiting for a stream");
    } else if (op->device_slot != kNoMarks) {
      const Marks marks = MarksOf(op->device_slot);
      passed = CudaStatus(cudaEventSynchronize(marks.end), "waiting for a stream");
      took = Elapsed(marks.begin, marks.end);
      GiveMarks(op->device_slot);
    }
    if (op->status.ok()) op->status = passed;
    op->finished = clock_->Now();
    op->started = op->finished - took;
    --stream->pending;
    op->inbox->Post(op->event);
  }

  const CudaDeviceOptions options_;
  const CudaProbe probe_;
  Clock* const clock_;
  const std::shared_ptr<CudaFences> fences_;
  std::vector<MemoryView> registered_;  // before the first copy
  std::mutex marks_mutex_;
  std::vector<Marks> marks_;          // guarded by marks_mutex_
  std::vector<uint32_t> free_marks_;  // guarded by marks_mutex_
  std::array<Stream, kStreamCount> streams_;
};

}  // namespace

absl::StatusOr<CudaProbe> ProbeCuda(int index) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return absl::UnavailableError("no NVIDIA driver is installed");
  int count = 0;
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&count), "looking for a CUDA GPU"));
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError(
        fmt::format("GPU {} was asked for; there are {}", index, count));
  }
  const CudaScope scope(index);
  cudaDeviceProp properties{};
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, index), "asking a GPU for its properties"));
  size_t free = 0, total = 0;
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaMemGetInfo(&free, &total), "asking a GPU for its free memory"));
  char address[32] = "";
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetPCIBusId(address, sizeof(address), index),
                                    "asking a GPU where it is"));
  return CudaProbe{.name = properties.name,
                   .compute_major = properties.major,
                   .compute_minor = properties.minor,
                   .memory_free = Bytes(static_cast<int64_t>(free)),
                   .memory_total = Bytes(static_cast<int64_t>(total)),
                   .pci_address = address};
}

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options,
                                                       Clock* clock) {
  SLUICE_ASSIGN_OR_RETURN(CudaProbe probe, ProbeCuda(options.index));
  auto device = std::make_unique<CudaDevice>(options, std::move(probe), clock);
  SLUICE_RETURN_IF_ERROR(device->Init());
  return device;
}

}  // namespace sluice
