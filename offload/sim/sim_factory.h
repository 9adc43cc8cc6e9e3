// offload/sim/sim_factory.h
//
// A runtime over simulated seams, in virtual time, from one seed. For tests; not linked into the
// library.

#ifndef SLUICE_OFFLOAD_SIM_SIM_FACTORY_H_
#define SLUICE_OFFLOAD_SIM_SIM_FACTORY_H_

#include <functional>
#include <memory>
#include <vector>

#include "core/sim_memory.h"
#include "core/sim_world.h"
#include "offload/run/factory.h"
#include "offload/run/planted_bug.h"

namespace sluice {

struct SimOptions {
  uint64_t seed = 1;
  PlantedBug planted_bug = PlantedBug::kNone;
  std::function<void(SimFaults*)> faults;  // says what goes wrong, before anything is made
  // Says otherwise where things live, and how many buffers there are (see SumUp).
  std::function<void(const ModelLayout&, Placement*)> place;
  std::vector<double> drive_bytes_per_second;  // by path; empty: drawn from the seed
  bool hbm_in_place = false;  // HBM is memory of the simulated host; else there is a link to it
  Nanos io_latency{0};        // if set, of every read and write, on drives without a limit of rate
};

// The world outlives the runtime, which is why they come together.
struct SimRuntime {
  std::unique_ptr<SimWorld> world;
  std::unique_ptr<SimMemory> memory;
  std::unique_ptr<OffloadRuntime> runtime;
};

// Rates and delays that `options` leaves open are drawn from the seed.
absl::StatusOr<SimRuntime> MakeSimRuntime(const ModelSpec& spec, const RuntimeConfig& config,
                                          const SimOptions& options);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_SIM_FACTORY_H_
