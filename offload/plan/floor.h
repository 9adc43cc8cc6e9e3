// offload/plan/floor.h
//
// The floor: the shortest time that a step can take on given hardware, whoever schedules it. Pure.
//
// With clipping or an overflow check no update can start before the last gradient, so
//     floor = max(backward, spill) + max(forward, io)
// where, term by term,
//     backward  the compute of the backward passes; on shared cores also the gradients' way to
//               pinned memory and their norm, since the same cores do it
//     spill     the gradients that go to NVMe meanwhile
//     forward   the compute of the forward passes; on shared cores also the update's arithmetic,
//               the checksums of what is read and written, and the copies into HBM
//     io        what else must be read and written (states, parameters and gradients that live on
//               NVMe), less what the buffers can read ahead during backward, over the drives' rate
//               for mixed traffic
// Without shared cores (a GPU), update, checksums and copies run beside compute: then
//     floor = max(backward, spill) + max(forward, io, update + checksums, link).
// Among ranks, what must be sent while backward goes on (gradients, and parameters that are
// gathered for it), and what while forward does (parameters that were updated), are terms of the
// two.

#ifndef SLUICE_OFFLOAD_PLAN_FLOOR_H_
#define SLUICE_OFFLOAD_PLAN_FLOOR_H_

#include "offload/plan/traffic.h"

namespace sluice {

// What the hardware does, measured without Sluice's own engine. Rates per second; 0 means
// infinitely fast.
struct HardwareRates {
  double forward_seconds = 0;  // compute of one step, everything resident
  double backward_seconds = 0;
  double nvme_bytes = 0;       // mixed reads and writes
  double update_elements = 0;  // AdamW from memory, all workers
  double checksum_bytes = 0;
  double copy_bytes = 0;  // into and out of HBM
  // What a rank's links take for what ranks send each other in a step, the busier of them.
  double links_backward_seconds = 0;
  double links_forward_seconds = 0;
  bool shared_cores = true;
};

struct FloorTerms {
  double total = 0;
  double forward = 0;
  double backward = 0;
  double spill = 0;
  double io = 0;
  double update = 0;
  double checksum = 0;
  double copies = 0;
  double gradients = 0;
  double links_backward = 0;
  double links_forward = 0;
};

FloorTerms Floor(const StepTraffic& traffic, const HardwareRates& rates);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_FLOOR_H_
