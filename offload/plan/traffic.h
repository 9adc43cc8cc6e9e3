// offload/plan/traffic.h
//
// What one step moves, from where everything lives. Pure.

#ifndef SLUICE_OFFLOAD_PLAN_TRAFFIC_H_
#define SLUICE_OFFLOAD_PLAN_TRAFFIC_H_

#include <cstdint>

#include "core/types.h"
#include "offload/plan/layout.h"
#include "offload/plan/placement.h"

namespace sluice {

struct StepTraffic {
  int64_t elements_updated = 0;  // by the host: none where states live in HBM
  Bytes nvme_read;
  Bytes nvme_written;
  Bytes read_ahead;   // of nvme_read, what the buffers hold before the step starts
  Bytes spilled;      // of nvme_written, gradients that live there, which go during backward; as
                      // many bytes come back for the update
  Bytes checksummed;  // read and written
  Bytes to_hbm;       // copies into HBM: of units that are brought there, and of updated parameters
                      // that live there, behind a link
  Bytes grads;        // copies out of HBM
};

// Of a step of one micro-step in which every tensor has a gradient.
StepTraffic TrafficOf(const ModelLayout& layout, const Placement& placement);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_TRAFFIC_H_
