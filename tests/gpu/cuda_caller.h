// tests/gpu/cuda_caller.h
//
// A caller's side of CUDA for tests: a stream of its own, memory of its own, and functions that run
// on the host when the stream gets there.

#ifndef SLUICE_TESTS_GPU_CUDA_CALLER_H_
#define SLUICE_TESTS_GPU_CUDA_CALLER_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "core/status.h"
#include "tests/offload/trainer.h"

namespace sluice::testing {

inline void CheckCuda(cudaError_t error) {
  SLUICE_CHECK_MSG(error == cudaSuccess, cudaGetErrorName(error));
}

// A stream that does not wait for the default stream.
class CudaStream {
 public:
  CudaStream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() {
    Synchronize();
    CheckCuda(cudaStreamDestroy(stream_));
  }

  cudaStream_t get() const { return stream_; }
  CallerStream caller() const { return {stream_}; }
  void Synchronize() { CheckCuda(cudaStreamSynchronize(stream_)); }

  // Runs `function`, which may not call CUDA, when the stream gets there.
  void Add(std::function<void()> function) {
    functions_.push_back(std::move(function));
    CheckCuda(cudaLaunchHostFunc(
        stream_, [](void* f) { (*static_cast<std::function<void()>*>(f))(); }, &functions_.back()));
  }

 private:
  cudaStream_t stream_ = nullptr;
  std::deque<std::function<void()>> functions_;
};

// `size` bytes of the GPU's memory.
inline std::shared_ptr<std::byte> CudaMemory(size_t size) {
  void* memory = nullptr;
  CheckCuda(cudaMalloc(&memory, std::max<size_t>(size, 1)));
  return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFree(p); }};
}

// `size` bytes of pinned host memory.
inline std::shared_ptr<std::byte> PinnedMemory(size_t size) {
  void* memory = nullptr;
  CheckCuda(cudaMallocHost(&memory, std::max<size_t>(size, 1)));
  return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFreeHost(p); }};
}

// A trainer's model on a stream: parameters are read from, and gradients written to, the GPU's
// memory when the stream gets there. Memory is taken at construction: allocating would synchronise.
class CudaCaller final : public Caller {
 public:
  explicit CudaCaller(size_t bytes)
      : size_(bytes), device_(CudaMemory(bytes)), host_(PinnedMemory(bytes)) {}

  CallerStream stream() override { return stream_.caller(); }

  const std::byte* Compute(const std::byte* params, size_t param_bytes, size_t grad_bytes,
                           Function function) override {
    const size_t in = Take(param_bytes);
    const size_t out = Take(grad_bytes);
    std::byte* const host = host_.get();
    CheckCuda(
        cudaMemcpyAsync(host + in, params, param_bytes, cudaMemcpyDeviceToHost, stream_.get()));
    stream_.Add(
        [host, in, out, function = std::move(function)] { function(host + in, host + out); });
    CheckCuda(cudaMemcpyAsync(device_.get() + out, host + out, grad_bytes, cudaMemcpyHostToDevice,
                              stream_.get()));
    return device_.get() + out;
  }
  void Forget() override {}  // the stream may still be at it

 private:
  size_t Take(size_t bytes) {
    const size_t at = used_;
    used_ += (bytes + 255) / 256 * 256;
    SLUICE_CHECK_MSG(used_ <= size_, "the caller of this test needs more memory");
    return at;
  }

  const size_t size_;
  size_t used_ = 0;
  const std::shared_ptr<std::byte> device_;
  const std::shared_ptr<std::byte> host_;
  CudaStream stream_;  // ends first
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_GPU_CUDA_CALLER_H_
