#include <cstdio>
#include <cstdlib>

#include "tests/gpu/gate.h"

namespace sluice::testing {

namespace {

constexpr unsigned long long kNanosMax = 5'000'000'000;

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gate: %s\n", cudaGetErrorName(error));
  std::abort();
}

__device__ unsigned long long Now() {
  unsigned long long now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void WaitUntilOpen(const volatile int* open) {
  const unsigned long long begin = Now();
  while (*open == 0 && Now() - begin < kNanosMax) {
  }
}

}  // namespace

Gate::Gate() {
  void* memory = nullptr;
  Check(cudaHostAlloc(&memory, sizeof(int), cudaHostAllocMapped));
  open_ = static_cast<int*>(memory);
  *open_ = 0;
  cudaFuncAttributes attributes{};
  Check(cudaFuncGetAttributes(&attributes, WaitUntilOpen));  // loads it now, not when it matters
}

Gate::~Gate() {
  Open();
  Check(cudaDeviceSynchronize());
  Check(cudaFreeHost(const_cast<int*>(open_)));
}

void Gate::HoldUp(cudaStream_t stream) {
  void* seen = nullptr;
  Check(cudaHostGetDevicePointer(&seen, const_cast<int*>(open_), 0));
  WaitUntilOpen<<<1, 1, 0, stream>>>(static_cast<const int*>(seen));
  Check(cudaGetLastError());
}

void Gate::Open() { *open_ = 1; }

}  // namespace sluice::testing
