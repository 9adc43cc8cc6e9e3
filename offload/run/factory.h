// offload/run/factory.h
//
// From options to a runtime over real seams: the machine's clock and memory, an executor, a device,
// files and an I/O engine. Also the one place where what was not given is chosen.

#ifndef SLUICE_OFFLOAD_RUN_FACTORY_H_
#define SLUICE_OFFLOAD_RUN_FACTORY_H_

#include <memory>
#include <string>
#include <vector>

#include "core/device_choice.h"
#include "core/numa.h"
#include "core/supplied_memory.h"
#include "core/topology.h"
#include "offload/run/host_share.h"
#include "offload/run/runtime.h"

namespace sluice {

// What a caller may say; the C ABI's sluice_options in C++ terms. Negative or zero: chosen.
struct RuntimeConfig {
  UnitTypes types;  // of units that don't say theirs
  PlacementOptions placement;
  Budgets budgets{Bytes(-1), Bytes(-1), Bytes(-1)};
  std::vector<std::string> nvme_paths;
  std::vector<DriveRate> nvme_rates;  // by path; empty: all are equally fast
  IoEngineKind engine = IoEngineKind::kAuto;
  IoEngine::Limits io;
  int workers = 0;
  int64_t chunk_elements = 0;
  LossScaleOptions loss_scale = {.static_scale = 1};
  std::shared_ptr<const UpdateRule> rule = MakeAdamW();
  StateFormatMaker format = MakeFp32States;  // of the rule's fields
  DeviceKind device = DeviceKind::kHost;
  int device_index = 0;                 // of the GPU
  std::shared_ptr<SuppliedMemory> hbm;  // if set, the HBM tier; else the device makes it
  double link_bytes_per_second = 0;     // of the host device
  // The host device's HBM is RAM, so that states in it would gain nothing: they go to pinned memory
  // at the highest. Tests say kHbm.
  Tier highest_state_tier_on_host = Tier::kPinned;
  bool overlap = true;
  size_t trace_spans_max = 0;
  Sharding sharding;                              // among how many ranks what is shared
  int zero_stage = 0;                             // that this comes from, for the report
  Nanos rank_timeout = std::chrono::minutes(10);  // for others to come
  HostShare share;                                // MakeRuntime finds it, where there are several
  Files* checkpoint_files = nullptr;              // Seams::checkpoint_files
};

inline constexpr int64_t kChunkElementsDefault = 12 * kCellElements;  // 576 KiB of states
// Where states don't move, a chunk is what one launch updates: enough to fill a GPU.
inline constexpr int64_t kChunkElementsInHbm = 256 * kCellElements;

// A table of so many chunks is small beside any machine that holds the model: larger models have
// larger chunks.
inline constexpr int64_t kChunksWanted = int64_t{1} << 22;
// `least`, or the multiple of kCellElements that makes kChunksWanted of `parameters`, if that is
// more.
int64_t ChunkElementsFor(int64_t parameters, int64_t least);

// Which cores a runtime is to have, and how many of them its workers: one less than its share of
// those on the node that it is bound to, unless `config` says.
struct CorePlan {
  NumaBinding binding;
  int workers = 1;
};
// On a machine as `files` tells it. Drives count if anything may live on them.
CorePlan PlanCores(const RuntimeConfig& config, const DeviceChoice& device,
                   const AllowedCores& allowed, const FileReader& files);

// What a placement is made from: the layout of `spec`, and of `config` what places it, with what
// was not given chosen. Errors: InvalidArgument, Unavailable (see ChooseDevice), Unimplemented
// (states that must be in a GPU's memory, in a format or by a rule without a kernel there; of what
// is asked of several ranks, what they can't do).
struct PlanInput {
  ModelLayout layout;
  DeviceChoice device;
  Budgets budgets;
  PlacementOptions options;
  CorePlan cores;
};
absl::StatusOr<PlanInput> MakePlanInput(const ModelSpec& spec, const RuntimeConfig& config);
// The same for a device that was chosen already, which need not be one of this machine. Budgets
// that are given are taken as they are; the machine is asked for the others only.
absl::StatusOr<PlanInput> MakePlanInput(const ModelSpec& spec, const RuntimeConfig& config,
                                        DeviceChoice device);

// Layout, device, budgets and placement for `spec`. Errors: as MakePlanInput, ResourceExhausted
// (see MakePlacement).
struct Plan {
  ModelLayout layout;
  DeviceChoice device;
  Budgets budgets;
  Placement placement;
  CorePlan cores;
};
absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RuntimeConfig& config);
// On that device, which was chosen before.
absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RuntimeConfig& config,
                              DeviceChoice device);

// `ranks`: of as many as `config` says; blocks until the others come to this too. Errors beside
// those of its parts: ResourceExhausted if RAM does not have what the plan takes of it, and what
// other ranks of this host take.
absl::StatusOr<std::unique_ptr<OffloadRuntime>> MakeRuntime(const ModelSpec& spec,
                                                            const RuntimeConfig& config,
                                                            RankLinks ranks = {});

// What of `config` a runtime is told, with time enough to give back what `plan` takes of RAM.
RuntimeOptions OptionsOf(const RuntimeConfig& config, const Plan& plan);

// The paths of `config` with their rates. Errors: InvalidArgument if the rates are not one positive
// number for each.
absl::StatusOr<std::vector<Drive>> DrivesOf(const RuntimeConfig& config);

// The segments that the blocks of `plan` need on `drives`: of 1 GiB, or larger so that they are
// about 128 in all, but not larger than this process may make a file.
SegmentTable SegmentsOf(const Plan& plan, std::span<const Drive> drives);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_FACTORY_H_
