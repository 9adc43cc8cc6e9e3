#include "offload/sim/sim_factory.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/config.h"
#include "core/sim_executor.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/sim_io_engine.h"

namespace sluice {

absl::StatusOr<SimRuntime> MakeSimRuntime(const ModelSpec& spec, const RuntimeConfig& config,
                                          const SimOptions& options) {
  constexpr int kWorkersMax = 4;
  RuntimeConfig planned = config;  // for any number of them, and of the machine's cores
  if (planned.workers == 0) planned.workers = kWorkersMax;
  planned.link_bytes_per_second = options.hbm_in_place ? 0 : 1;
  SLUICE_ASSIGN_OR_RETURN(Plan plan, MakePlan(spec, planned));
  if (options.place) {
    options.place(plan.layout, &plan.placement);
    SumUp(plan.layout, &plan.placement);
  }
  SimRuntime sim;
  sim.world = std::make_unique<SimWorld>(options.seed);
  sim.memory = std::make_unique<SimMemory>(sim.world->faults());
  SimWorld* const world = sim.world.get();
  world->Plant(static_cast<int>(options.planted_bug));
  if (options.faults) options.faults(world->faults());
  Seams seams;
  seams.clock = world;
  seams.host_memory = sim.memory.get();
  seams.threaded = false;
  seams.cores.compute = seams.cores.update = seams.cores.nodes = "simulated";
  seams.executor =
      MakeSimExecutor(world, config.workers > 0 ? config.workers
                                                : static_cast<int>(world->Uniform(1, kWorkersMax)));
  seams.device =
      MakeSimDevice({.link_bytes_per_second = 1e9 * static_cast<double>(world->Uniform(1, 16)),
                     .host_addressable = plan.placement.hbm_in_place},
                    world, sim.memory.get());
  SLUICE_ASSIGN_OR_RETURN(std::vector<Drive> drives, DrivesOf(config));
  if (drives.empty()) drives.push_back({.path = "simulated"});
  seams.segments = SegmentsOf(plan, drives);
  seams.make_engine =
      [world, sizes = seams.segments.file_sizes, file_drive = seams.segments.file_drive,
       drive_count = drives.size(), alignment = plan.placement.io_alignment, limits = config.io,
       rates = options.drive_bytes_per_second, latency = options.io_latency](
          std::span<const MemoryView>,
          std::span<const DirectFile>) -> absl::StatusOr<std::unique_ptr<IoEngine>> {
    for (Bytes size : sizes) {
      if (world->faults()->Next(SimSeam::kFile) != SimFault::kRefused) continue;
      return ErrnoStatus(ENOSPC, fmt::format("reserving {} of simulated drive", FormatBytes(size)));
    }
    SimIoOptions io{.bytes_per_second = rates,
                    .file_drive = file_drive,
                    .latency_min = Nanos(10'000),
                    .latency_max = Nanos(static_cast<int64_t>(world->Uniform(20'000, 2'000'000))),
                    .alignment = alignment};
    while (io.bytes_per_second.size() < drive_count)
      io.bytes_per_second.push_back(1e8 * static_cast<double>(world->Uniform(1, 50)));
    if (latency > Nanos(0)) {
      io.bytes_per_second.assign(drive_count, 1e18);
      io.latency_min = io.latency_max = latency;
    }
    return MakeSimIoEngine(io, sizes, limits, world);
  };
  const RuntimeOptions runtime_options = OptionsOf(config, plan);
  SLUICE_ASSIGN_OR_RETURN(sim.runtime,
                          OffloadRuntime::Create(std::move(plan.layout), std::move(plan.placement),
                                                 runtime_options, std::move(seams)));
  return sim;
}

}  // namespace sluice
