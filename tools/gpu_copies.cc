#include "tools/gpu_copies.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>
#include <vector>

#include "core/bell.h"
#include "core/clock.h"
#include "core/cuda_device.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice::tools {
namespace {

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("{}: {}", what, cudaGetErrorName(error)));
}
void CheckCuda(cudaError_t error) {
  SLUICE_CHECK_MSG(error == cudaSuccess, cudaGetErrorName(error));
}

// One buffer on either side, and copies of `size` from one to the other, again and again.
struct Lane {
  std::byte* host;
  std::byte* device;
  bool to_host;

  ConstMemoryView From(size_t at, size_t size) const {
    return {(to_host ? device : host) + at, size};
  }
  std::byte* To(size_t at) const { return (to_host ? host : device) + at; }
};

std::vector<Lane> LanesOf(CopyWay way, std::byte* host, std::byte* device) {
  const Lane down{host, device, false};
  const Lane up{host + kGpuBuffer.value(), device + kGpuBuffer.value(), true};
  if (way == CopyWay::kToDevice) return {down};
  if (way == CopyWay::kToHost) return {up};
  return {down, up};
}

// Where in its buffers the copy with number `n` begins: whole ones only, from the start again when
// the next would run past the end.
size_t At(int64_t n, Bytes size) { return (size * (n % (kGpuBuffer / size))).size(); }

class CudaCopies final : public GpuCopies {
 public:
  ~CudaCopies() override {
    for (cudaStream_t s : streams_) cudaStreamDestroy(s);
    device_.reset();
    cudaFreeHost(plain_);
  }

  absl::Status Start(int index) {
    SLUICE_ASSIGN_OR_RETURN(device_, MakeCudaDevice({.index = index}, &clock_));
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(index), "cudaSetDevice"));
    SLUICE_ASSIGN_OR_RETURN(pinned_, Arena::Create(&memory_, 2 * kGpuBuffer));
    SLUICE_ASSIGN_OR_RETURN(hbm_, device_->MakeHbmArena(2 * kGpuBuffer));
    SLUICE_RETURN_IF_ERROR(device_->RegisterHost(pinned_.memory()));
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaMallocHost(&plain_, (2 * kGpuBuffer).size()), "cudaMallocHost"));
    std::memset(plain_, 1, (2 * kGpuBuffer).size());
    for (cudaStream_t& s : streams_) {
      SLUICE_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking),
                                        "cudaStreamCreateWithFlags"));
    }
    return absl::OkStatus();
  }

  double PlainSeconds(CopyWay way, Bytes size, int64_t count) override {
    const std::vector<Lane> lanes =
        LanesOf(way, static_cast<std::byte*>(plain_), hbm_.memory().data());
    const TimePoint begin = clock_.Now();
    for (int64_t n = 0; n < count; ++n) {
      const size_t at = At(n, size);
      for (size_t i = 0; i < lanes.size(); ++i) {
        CheckCuda(cudaMemcpyAsync(
            lanes[i].To(at), lanes[i].From(at, size.size()).data(), size.size(),
            lanes[i].to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, streams_[i]));
      }
    }
    for (size_t i = 0; i < lanes.size(); ++i) CheckCuda(cudaStreamSynchronize(streams_[i]));
    return Seconds(clock_.Now() - begin);
  }

  double DeviceSeconds(CopyWay way, Bytes size, int64_t count) override {
    struct Copy final : Event {
      void Handle() override {
        SLUICE_CHECK_MSG(op.status.ok(), Message(op.status));
        --*left;
      }
      DeviceOp op;
      int* left = nullptr;
    };
    const std::vector<Lane> lanes = LanesOf(way, pinned_.memory().data(), hbm_.memory().data());
    Bell bell;
    Inbox inbox;
    inbox.SetWaker(&bell);
    const auto all = static_cast<size_t>(count) * lanes.size();
    int left = static_cast<int>(all);
    std::vector<Copy> copies(all);
    const TimePoint begin = clock_.Now();
    for (size_t i = 0; i < all; ++i) {
      const Lane& lane = lanes[i % lanes.size()];
      const size_t at = At(static_cast<int64_t>(i / lanes.size()), size);
      copies[i].left = &left;
      copies[i].op.stream = lane.to_host ? StreamKind::kDeviceToHost : StreamKind::kHostToDevice;
      copies[i].op.from = lane.From(at, size.size());
      copies[i].op.to = lane.To(at);
      copies[i].op.inbox = &inbox;
      copies[i].op.event = &copies[i];
      device_->Enqueue(&copies[i].op);
    }
    while (left > 0) {
      const int seen = bell.rings();
      if (!inbox.HandleAll()) bell.Wait(seen);
    }
    return Seconds(clock_.Now() - begin);
  }

  std::string description() const override { return device_->description(); }

 private:
  SteadyClock clock_;
  HugePageResource memory_;
  Arena pinned_;
  std::unique_ptr<Device> device_;
  Arena hbm_;
  void* plain_ = nullptr;
  cudaStream_t streams_[2] = {};
};

}  // namespace

const char* Name(CopyWay way) {
  return way == CopyWay::kToDevice ? "to HBM" : way == CopyWay::kToHost ? "to host" : "both ways";
}

absl::StatusOr<std::unique_ptr<GpuCopies>> MakeGpuCopies(int index) {
  auto copies = std::make_unique<CudaCopies>();
  SLUICE_RETURN_IF_ERROR(copies->Start(index));
  return copies;
}

}  // namespace sluice::tools
