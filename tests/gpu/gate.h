// tests/gpu/gate.h
//
// Holds a stream up until it is opened: a kernel that watches a flag in host memory. (A function on
// the host would hold up more than its stream: the driver's own thread, which copies of pageable
// memory need.) It gives up after some seconds, so that a test that fails can't hang the GPU.

#ifndef SLUICE_TESTS_GPU_GATE_H_
#define SLUICE_TESTS_GPU_GATE_H_

#include <cuda_runtime_api.h>

namespace sluice::testing {

class Gate {
 public:
  Gate();  // takes pinned memory, which may wait for the GPU
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate();  // opens, and waits for the GPU

  void HoldUp(cudaStream_t stream);  // once
  void Open();

 private:
  volatile int* open_ = nullptr;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_GPU_GATE_H_
