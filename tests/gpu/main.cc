// The main of every test binary that needs a GPU: without one it says why it skips, and ends with
// the code that ctest knows as "skipped".

#include <gtest/gtest.h>

#include <cstdio>

#include "core/cuda_device.h"
#include "core/status.h"

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in tests/CMakeLists.txt
  testing::InitGoogleTest(&argc, argv);
  const absl::StatusOr<sluice::CudaProbe> probe = sluice::ProbeCuda(0);
  if (!probe.ok()) {
    std::printf("skipped: no GPU can be used: %s\n",
                std::string(sluice::Message(probe.status())).c_str());
    return kSkipped;
  }
  std::printf("on %s\n", probe->name.c_str());
  return RUN_ALL_TESTS();
}
