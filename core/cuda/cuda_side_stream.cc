#include <cuda_runtime_api.h>

#include <deque>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/cuda/cuda_status.h"
#include "core/cuda_device.h"
#include "core/side_stream.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

class CudaSideStream final : public SideStream {
 public:
  explicit CudaSideStream(int index) : index_(index) {}

  absl::Status Init(Bytes staging) {
    const CudaScope scope(index_);
    int least = 0, greatest = 0;
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                      "asking for the priorities of streams"));
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
                   "making a stream for ranks' communication"));
    void* memory = nullptr;
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(&memory, staging.size()),
                   fmt::format("{} for ranks' communication", FormatBytes(staging))));
    staging_ = MemoryView(static_cast<std::byte*>(memory), staging.size());
    return absl::OkStatus();
  }

  // All has run: freeing waits for nothing.
  ~CudaSideStream() override {
    const CudaScope scope(index_);
    for (const Open& open : open_) cudaEventDestroy(open.event);
    for (cudaEvent_t event : free_) cudaEventDestroy(event);
    if (!staging_.empty()) cudaFree(staging_.data());
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Bind() override {
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaSetDevice(index_), fmt::format("using GPU {} on a thread", index_)));
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    return CudaStatus(cudaThreadExchangeStreamCaptureMode(&mode), "a thread of its own");
  }
  void* handle() const override { return stream_; }
  MemoryView staging() const override { return staging_; }

  absl::Status Copy(ConstMemoryView from, std::byte* to) override {
    return CudaStatus(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyDefault, stream_),
                      fmt::format("a copy of {} bytes on the GPU", from.size()));
  }

  absl::StatusOr<uint64_t> Mark() override {
    if (free_.empty()) {
      cudaEvent_t event = nullptr;
      SLUICE_RETURN_IF_ERROR(
          CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event"));
      free_.push_back(event);
    }
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(free_.back(), stream_), "marking a point of a stream"));
    open_.push_back({++marks_, free_.back()});
    free_.pop_back();
    return marks_;
  }

  absl::StatusOr<bool> Passed(uint64_t mark) override {
    while (!open_.empty() && open_.front().mark <= mark) {
      const cudaError_t error = cudaEventQuery(open_.front().event);
      if (error == cudaErrorNotReady) return false;
      SLUICE_RETURN_IF_ERROR(CudaStatus(error, "on the stream of ranks' communication"));
      free_.push_back(open_.front().event);
      open_.pop_front();
    }
    return true;
  }

  std::string description() const override { return fmt::format("CUDA GPU {}", index_); }

 private:
  struct Open {
    uint64_t mark;
    cudaEvent_t event;
  };

  const int index_;
  cudaStream_t stream_ = nullptr;
  MemoryView staging_;
  std::deque<Open> open_;  // marks that may not have been passed, in order
  std::vector<cudaEvent_t> free_;
  uint64_t marks_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SideStream>> MakeCudaSideStream(int index, Bytes staging) {
  SLUICE_RETURN_IF_ERROR(ProbeCuda(index).status());
  auto stream = std::make_unique<CudaSideStream>(index);
  SLUICE_RETURN_IF_ERROR(stream->Init(staging));
  return stream;
}

}  // namespace sluice
