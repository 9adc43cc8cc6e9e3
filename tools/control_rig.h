// tools/control_rig.h
//
// A runtime whose control thread is all that costs. Drives, device and workers are here such that
// cost next to nothing: they do their work at once, in the calling thread, which also turns the
// runtime's loop, on blocks of 4 KiB. What tasks take (checksums, the update) is taken off; what
// the drives and the device copy is not. Not in it: system calls for transfers, and waking a thread
// that sleeps.
//
// The model has one chunk a unit; half of the units fit the cache, all states are on the drive.
// One thread. Time is its CPU time.

#ifndef SLUICE_TOOLS_CONTROL_RIG_H_
#define SLUICE_TOOLS_CONTROL_RIG_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "offload/run/runtime.h"

namespace sluice::tools {

class ControlRig {
 public:
  explicit ControlRig(uint32_t units);
  ~ControlRig();

  // The control plane's seconds for a forward, the gradients, and the update of every chunk.
  struct Seconds {
    double acquisitions;
    double gradients;
    double chunks;
  };
  Seconds Step();
  // Seconds for so many acquisitions of a unit that is resident, each waited for and released.
  double Resident(int times);

 private:
  double Of(absl::FunctionRef<void()> work);
  void Wait(Ticket ticket);

  const uint32_t units_;
  std::vector<float> values_;
  std::vector<Ticket> tickets_;
  double task_seconds_ = 0;
  std::unique_ptr<OffloadRuntime> runtime_;
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_CONTROL_RIG_H_
