// The C ABI's one addition in the test library: a runtime over simulated seams.

#include <mutex>
#include <utility>
#include <vector>

#include "core/status.h"
#include "offload/c_api_internal.h"
#include "offload/sim_factory.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

extern "C" SLUICE_API sluice_status sluice_runtime_create_simulated(sluice_model model,
                                                                    const sluice_options* options,
                                                                    uint64_t seed,
                                                                    sluice_runtime* runtime) {
  // Worlds outlive their runtimes, which views may outlive: they are kept until the process ends.
  static auto* worlds =
      new std::vector<std::pair<std::unique_ptr<SimWorld>, std::unique_ptr<MemoryResource>>>;
  static std::mutex mutex;
  return Return([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, SpecOf(model));
    SLUICE_ASSIGN_OR_RETURN(RuntimeConfig config, ToConfig(options));
    config.device = DeviceKind::kHost;  // the plan must not depend on the machine
    SLUICE_ASSIGN_OR_RETURN(SimRuntime sim, MakeSimRuntime(spec, config, {.seed = seed}));
    *runtime = AddRuntime(std::move(sim.runtime));
    const std::lock_guard lock(mutex);
    worlds->emplace_back(std::move(sim.world), std::move(sim.memory));
    return absl::OkStatus();
  }());
}
