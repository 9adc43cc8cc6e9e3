// The C ABI's additions in the test library: a runtime over simulated seams, and what goes wrong in
// them.

#include <map>
#include <mutex>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"
#include "offload/sim/sim_factory.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

namespace {

// Worlds outlive their runtimes, which views may outlive: they are kept until the process ends.
struct Worlds {
  std::mutex mutex;
  std::map<sluice_runtime, std::pair<std::unique_ptr<SimWorld>, std::unique_ptr<MemoryResource>>>
      by_runtime;  // guarded by mutex
};

Worlds& AllWorlds() {
  static auto* worlds = new Worlds;
  return *worlds;
}

}  // namespace

extern "C" SLUICE_API sluice_status sluice_runtime_create_simulated(sluice_model model,
                                                                    const sluice_options* options,
                                                                    uint64_t seed,
                                                                    sluice_runtime* runtime) {
  return Return([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, SpecOf(model));
    SLUICE_ASSIGN_OR_RETURN(RuntimeConfig config, ToConfig(options));
    config.device = DeviceKind::kHost;  // the plan must not depend on the machine
    if (config.sharding.ranks > 1) {
      return absl::InvalidArgumentError(
          fmt::format("ranks is {}: a simulated runtime is alone", config.sharding.ranks));
    }
    SLUICE_ASSIGN_OR_RETURN(SimRuntime sim, MakeSimRuntime(spec, config, {.seed = seed}));
    *runtime = AddRuntime(std::move(sim.runtime));
    const std::lock_guard lock(AllWorlds().mutex);
    AllWorlds().by_runtime[*runtime] = {std::move(sim.world), std::move(sim.memory)};
    return absl::OkStatus();
  }());
}

// From now on the `nth` call of `seam` (SimSeam) ends as `fault` (SimFault) says, and, if `always`
// is not 0, all that follow. *happened: faults of any kind so far. nth 0: only asks.
extern "C" SLUICE_API sluice_status sluice_simulated_fault(sluice_runtime runtime, uint32_t seam,
                                                           uint32_t fault, uint64_t nth,
                                                           uint32_t always, uint64_t* happened) {
  return Return([&]() -> absl::Status {
    SLUICE_RETURN_IF_ERROR(CheckRange(seam, 0, kSimSeamCount - 1, "seam"));
    SLUICE_RETURN_IF_ERROR(CheckRange(fault, 0, static_cast<int>(SimFault::kSilent), "fault"));
    const std::lock_guard lock(AllWorlds().mutex);
    const auto found = AllWorlds().by_runtime.find(runtime);
    if (found == AllWorlds().by_runtime.end()) {
      return absl::InvalidArgumentError(fmt::format("runtime {} is not a simulated one", runtime));
    }
    SimFaults* const faults = found->second.first->faults();
    if (nth > 0) {
      faults->Script(static_cast<SimSeam>(seam), static_cast<SimFault>(fault), nth,
                     always != 0 ? SimFaults::Repeat::kAlways : SimFaults::Repeat::kOnce);
    }
    *happened = faults->happened();
    return absl::OkStatus();
  }());
}
