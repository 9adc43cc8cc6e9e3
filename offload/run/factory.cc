#include "offload/run/factory.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "comm/nccl.h"
#include "comm/nccl_calls.h"
#include "core/budget.h"
#include "core/cuda_device.h"
#include "core/numa.h"
#include "core/status.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "offload/plan/default_budgets.h"
#include "offload/plan/ram_need.h"
#include "offload/run/reduction_trial.h"

namespace sluice {

namespace {

// The process's own: they hold nothing but what the kernel gives. Never destroyed: a runtime that
// was abandoned, or never destroyed, may use them until the process has ended.
SteadyClock* RealClock() {
  static auto* const clock = new SteadyClock;
  return clock;
}
HugePageResource* RealMemory() {
  static auto* const resource = new HugePageResource;
  return resource;
}

// One for all runtimes of the process, as long as there is one. A child of fork makes its own: the
// threads of its parent's are not there.
std::shared_ptr<OpenMpWaits> RealOpenMpWaits(const Topology& topology) {
  struct Shared {
    std::mutex mutex;
    pid_t process = 0;                 // guarded by mutex
    std::weak_ptr<OpenMpWaits> waits;  // likewise
    std::shared_ptr<OpenMpWaits> get() { return process == getpid() ? waits.lock() : nullptr; }
  };
  static auto* const shared = new Shared;
  {
    const std::lock_guard lock(shared->mutex);
    if (auto waits = shared->get(); waits != nullptr) return waits;
  }
  // The process's, not this runtime's.
  const ScopedNumaBinding everywhere(NumaBinding{.cores = topology.cores});
  // A quota counts time: spinning spends it.
  const bool quota = topology.cores_allowed < static_cast<int>(topology.cores.size());
  std::shared_ptr<OpenMpWaits> made = OpenMpWaits::Make(
      topology.cores_allowed, topology.cores_machine,
      quota ? OpenMpWaits::Mode::kSleep : OpenMpWaits::Mode::kSleepUnlessItPays, topology.cores);
  const std::lock_guard lock(shared->mutex);
  if (auto waits = shared->get(); waits != nullptr) return waits;  // somebody was faster
  shared->process = getpid();
  shared->waits = made;
  return made;
}

// Of the file system at `path`, or of where it will be.
std::optional<int> NodeOfPath(const FileReader& files, const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return NodeOfBlockDevice(files, major(status.st_dev), minor(status.st_dev));
}

CoreUse CoresOf(const RuntimeConfig& config, const Topology& topology, const Plan& plan) {
  const NumaBinding& binding = plan.cores.binding;
  const bool help = plan.device.kind == DeviceKind::kHost;
  CoreUse use;
  use.allowed = topology.cores_allowed;
  use.machine = topology.cores_machine;
  use.callers_help = help;
  use.openmp_waits = RealOpenMpWaits(topology);
  use.compute = fmt::format("the caller's threads, on any of {} cores", topology.cores_allowed);
  std::string why = "one less than cores: the caller has one";
  if (config.share.local_ranks > 1) {
    why = fmt::format(
        "{} ranks of this host: {:.0f} % of these cores are this one's, one the caller's",
        config.share.local_ranks, 100 * config.share.cores);
  }
  if (config.workers > 0) why = "as asked for";
  use.update = fmt::format(
      "{} workers ({}), on any of {}; {}", plan.cores.workers, why,
      binding.node ? "the node's" : "them",
      help ? "so does a caller that waits" : "a caller that waits does not: it launches kernels");
  use.nodes = binding.reason;
  use.node = binding.node;
  return use;
}

absl::StatusOr<std::unique_ptr<Device>> DeviceOf(const Plan& plan, const RuntimeConfig& config) {
  if (plan.device.kind == DeviceKind::kCuda)
    return MakeCudaDevice({.index = plan.device.index, .hbm = config.hbm}, RealClock());
  return MakeHostDevice({.hbm_limit = plan.budgets.hbm,
                         .link_bytes_per_second = config.link_bytes_per_second,
                         .hbm = config.hbm},
                        RealClock(), RealMemory());
}

absl::Status CheckSharding(const ModelSpec& spec, const RuntimeConfig& config) {
  if (config.sharding.ranks == 1) return absl::OkStatus();
  for (const ModelSpec::Tensor& tensor : spec.tensors) {
    if (!IsLent(tensor.keep)) continue;
    return absl::UnimplementedError(fmt::format(
        "tensor '{}' stays in the caller's memory, which several ranks can't have", tensor.name));
  }
  return absl::OkStatus();
}

ExchangePlace PlaceOf(DeviceKind kind, double link_bytes_per_second) {
  if (kind == DeviceKind::kCuda) return ExchangePlace::kOnGpu;
  return link_bytes_per_second > 0 ? ExchangePlace::kBehindLink : ExchangePlace::kInPlace;
}

// Gradients and gathers go from GPU to GPU: what the ranks were given for these, in host memory, is
// where they meet for it. All ranks call it.
absl::Status PutOnGpus(RankLinks* ranks, const RuntimeConfig& config, int gpu) {
  SLUICE_ASSIGN_OR_RETURN(const std::shared_ptr<const NcclLibrary> library,
                          NcclLibrary::Open({.path = "", .packages = LoadedPackageFolders()}));
  for (std::unique_ptr<Communicator>* const link : {&ranks->gradients, &ranks->gathers}) {
    const Bytes staging = std::max(MiB(1), NcclCalls::StagingMin(config.sharding.ranks));
    SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<SideStream> stream, MakeCudaSideStream(gpu, staging));
    SLUICE_ASSIGN_OR_RETURN(*link,
                            MakeNcclCommunicator(library, std::move(*link), std::move(stream),
                                                 {.timeout = config.rank_timeout}, RealClock()));
  }
  return absl::OkStatus();
}

// What the arenas of `plan` take of RAM.
RamNeed ArenasOf(const Plan& plan, const RuntimeConfig& config) {
  const bool hbm_is_ram = plan.device.kind == DeviceKind::kHost && config.hbm == nullptr;
  return {.pinned = plan.placement.pinned(), .hbm = hbm_is_ram ? plan.placement.hbm() : Bytes(0)};
}

}  // namespace

CorePlan PlanCores(const RuntimeConfig& config, const DeviceChoice& device,
                   const AllowedCores& allowed, const FileReader& files) {
  NumaWishes wishes{.allowed = allowed.cores};
  if (device.kind == DeviceKind::kCuda) wishes.gpu = NodeOfPciDevice(files, device.pci_address);
  for (const std::string& path : config.nvme_paths)
    wishes.drives.push_back(NodeOfPath(files, path));
  CorePlan plan{.binding = ChooseNumaBinding(ReadNumaNodes(files), wishes)};
  // One budget for the caller's threads and the workers: a core is the caller's, who updates on it
  // while it waits, unless it is to launch kernels.
  const std::vector<int>& cores = plan.binding.node ? plan.binding.cores : allowed.cores;
  // Rounded up, as a quota is: of cores that ranks don't divide evenly none stays idle.
  const auto part_of = [](double share, double of) {
    return std::max(1, static_cast<int>(std::ceil(share * of - 1e-6)));
  };
  const int share = std::min(part_of(config.share.cores, static_cast<double>(cores.size())),
                             part_of(config.share.quota, allowed.count));
  plan.workers = config.workers > 0 ? config.workers : std::max(1, share - 1);
  return plan;
}

absl::StatusOr<PlanInput> MakePlanInput(const ModelSpec& spec, const RuntimeConfig& config) {
  SLUICE_ASSIGN_OR_RETURN(DeviceChoice device, ChooseDevice(config.device, config.device_index));
  return MakePlanInput(spec, config, std::move(device));
}

absl::StatusOr<PlanInput> MakePlanInput(const ModelSpec& spec, const RuntimeConfig& config,
                                        DeviceChoice device) {
  PlanInput input;
  input.device = std::move(device);
  input.options = config.placement;
  if (config.nvme_paths.empty()) {
    input.options.lowest_param_tier = std::min(input.options.lowest_param_tier, Tier::kPinned);
    input.options.lowest_state_tier = std::min(input.options.lowest_state_tier, Tier::kPinned);
  }
  SLUICE_RETURN_IF_ERROR(CheckSharding(spec, config));
  if (config.sharding.ranks > 1 && !config.sharding.params) {
    // What ranks gather in place must be in memory.
    input.options.lowest_param_tier = std::min(input.options.lowest_param_tier, Tier::kPinned);
  }
  const auto lent = [](const ModelSpec::Tensor& t) { return IsLent(t.keep); };
  if (std::any_of(spec.tensors.begin(), spec.tensors.end(), lent)) {
    // The host updates what lies in the caller's memory.
    input.options.lowest_state_tier = std::max(input.options.lowest_state_tier, Tier::kPinned);
  }
  input.options.highest_state_tier =
      input.device.kind == DeviceKind::kHost ? config.highest_state_tier_on_host : Tier::kHbm;
  input.options.lowest_state_tier =
      std::max(input.options.lowest_state_tier, input.options.highest_state_tier);
  input.options.hbm_in_place =
      input.device.kind == DeviceKind::kHost && config.link_bytes_per_second == 0;
  input.cores =
      PlanCores(config, input.device, FindAllowedCores().value_or(AllowedCores()), FilesBelow(""));
  input.options.workers = input.cores.workers;
  input.options.io_alignment =
      std::max(input.options.io_alignment, ExtentAlignmentOf(config.nvme_paths));
  int64_t parameters = 0;  // refused below if it is too large
  for (const ModelSpec::Tensor& tensor : spec.tensors)
    parameters =
        std::min(kElementsMax, parameters + std::clamp<int64_t>(tensor.elements, 0, kElementsMax));
  const std::shared_ptr<const StateFormat> format = config.format(config.rule->fields());
  int64_t chunk_elements_least = kChunkElementsDefault;
  if (config.request > Bytes(0)) {
    chunk_elements_least =
        ChunkElementsOf(config.request, format->bytes(kCellElements, std::nullopt));
  }
  if (input.options.lowest_state_tier == Tier::kHbm) chunk_elements_least = kChunkElementsInHbm;
  const int64_t chunk_elements_default = ChunkElementsFor(parameters, chunk_elements_least);
  SLUICE_ASSIGN_OR_RETURN(
      input.layout,
      ModelLayout::Make(spec,
                        config.chunk_elements > 0 ? config.chunk_elements : chunk_elements_default,
                        config.types, format, config.sharding));
  if (input.device.kind == DeviceKind::kCuda) {
    const absl::Status can = StateUpdate(input.layout.format(), config.rule).CheckGpu();
    if (!can.ok() && input.options.lowest_state_tier == Tier::kHbm) return can;
    if (!can.ok()) input.options.highest_state_tier = Tier::kPinned;
  }
  Budgets given = config.budgets;
  if (given.hbm < Bytes(0) && config.hbm != nullptr)
    given.hbm = Bytes(static_cast<int64_t>(config.hbm->memory().size()));
  Bytes available = config.share.ram.value_or(GiB(1));
  if (!config.share.ram && (given.hbm < Bytes(0) || given.pinned < Bytes(0))) {
    SLUICE_ASSIGN_OR_RETURN(const MemoryLimits limits, ReadMemoryLimits());
    available = limits.available();
  }
  input.budgets = DefaultBudgets(given, input.layout, input.options, available,
                                 config.share.hbm ? config.share.hbm : input.device.memory_free);
  return input;
}

absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RuntimeConfig& config) {
  SLUICE_ASSIGN_OR_RETURN(DeviceChoice device, ChooseDevice(config.device, config.device_index));
  return MakePlan(spec, config, std::move(device));
}

absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RuntimeConfig& config,
                              DeviceChoice device) {
  SLUICE_ASSIGN_OR_RETURN(PlanInput input, MakePlanInput(spec, config, std::move(device)));
  SLUICE_ASSIGN_OR_RETURN(Placement placement,
                          MakePlacement(input.layout, input.budgets, input.options));
  return Plan{std::move(input.layout), std::move(input.device), input.budgets,
              std::move(placement),    std::move(input.cores),  input.options};
}

int64_t ChunkElementsOf(Bytes request, Bytes bytes) {
  return std::max<int64_t>(1, request / bytes) * kCellElements;
}

int64_t ChunkElementsFor(int64_t parameters, int64_t least) {
  const int64_t enough = (parameters + kChunksWanted - 1) / kChunksWanted;
  return std::max(least, (enough + kCellElements - 1) / kCellElements * kCellElements);
}

RuntimeOptions OptionsOf(const RuntimeConfig& config, const Plan& plan) {
  constexpr int64_t kGivenBackPerSecond = 4'000'000'000;  // bytes of memory, on small pages
  CloseTimes close;
  close.take_down +=
      std::chrono::seconds(ArenasOf(plan, config).sum().value() / kGivenBackPerSecond);
  return {.budgets = plan.budgets,
          .placement = plan.options,
          .rule = config.rule,
          .io = config.io,
          .io_settings = config.io_settings,
          .loss_scale = config.loss_scale,
          .overlap = config.overlap,
          .trace_spans_max = config.trace_spans_max,
          .zero_stage = config.zero_stage,
          .share = config.share,
          .rank_timeout = config.rank_timeout,
          .close = close};
}

namespace {

// Of `ranks`, what the runtime does not own stays.
absl::StatusOr<std::unique_ptr<OffloadRuntime>> TryToMakeRuntime(const ModelSpec& spec,
                                                                 const RuntimeConfig& given,
                                                                 RankLinks* ranks) {
  RuntimeConfig config = given;
  SLUICE_ASSIGN_OR_RETURN(const DeviceChoice device,
                          ChooseDevice(config.device, config.device_index));
  const auto look = [ranks, &config, &device](Bytes need,
                                              const absl::StatusOr<MemoryLimits>& limits) {
    HostView view = LookAtHost(FilesBelow(""), FindAllowedCores().value_or(AllowedCores()), limits);
    view.need = need.value();
    view.exchanges = static_cast<int64_t>(PlaceOf(device.kind, config.link_bytes_per_second));
    view.reduction = static_cast<int64_t>(config.placement.reduction);
    if (device.memory_free) view.hbm_left = device.memory_free->value();
    return ExchangeViews(view, ranks->agreement.get(), config.give_up);
  };
  if (*ranks) {
    SLUICE_ASSIGN_OR_RETURN(const std::vector<HostView> views, look(Bytes(0), ReadMemoryLimits()));
    SLUICE_RETURN_IF_ERROR(CheckSameExchange(views, config.sharding.rank, device.reason));
    config.share = ShareOf(views, config.sharding.rank);
    // NCCL can; what is supplied for the host is asked.
    if (config.placement.reduction == ReductionMode::kLibrary && device.kind == DeviceKind::kHost)
      SLUICE_RETURN_IF_ERROR(TryLibraryReduction(ranks->gradients.get(), config.give_up));
    ShareTunedDepth(config.share.local_ranks, &config);
  }
  SLUICE_ASSIGN_OR_RETURN(Plan plan, MakePlan(spec, config, device));
  if (*ranks && !plan.placement.hbm_in_place && ranks->values == nullptr) {
    return absl::InvalidArgumentError(
        "ranks whose compute is behind a link need a fourth group, for values in host memory");
  }
  SLUICE_ASSIGN_OR_RETURN(const Topology topology, DetectTopology());
  Seams seams;
  seams.cores = CoresOf(config, topology, plan);
  // What is taken and started from here on is the runtime's.
  const ScopedNumaBinding bound(plan.cores.binding);
  if (!bound.refused().empty()) seams.cores.nodes += "; refused: " + bound.refused();
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Drive> drives, DrivesOf(config));
  seams.segments = SegmentsOf(plan, drives);
  RamNeed need = ArenasOf(plan, config);
  need.files = BytesInRam(seams.segments);
  absl::StatusOr<MemoryLimits> limits = ReadMemoryLimits();
  if (*ranks) {
    SLUICE_ASSIGN_OR_RETURN(const std::vector<HostView> views, look(need.sum(), limits));
    if (limits.ok()) limits = LimitsAmong(views, config.sharding.rank, *std::move(limits));
    if (views[config.sharding.rank.value()].kernel.front() == 0)
      seams.ram_unchecked =
          "which ranks are of this host is not known: it was looked at as for one";
  }
  const absl::Status enough = CheckRamIfKnown(need, limits, &seams.ram_unchecked);
  if (!enough.ok() && config.share.local_ranks > 1) {
    return Annotate(enough, fmt::format("rank {}, of {} ranks of this host; what the others are "
                                        "about to take counts as used",
                                        config.sharding.rank.value(), config.share.local_ranks));
  }
  SLUICE_RETURN_IF_ERROR(enough);
  seams.clock = RealClock();
  seams.host_memory = RealMemory();
  SLUICE_ASSIGN_OR_RETURN(seams.executor, MakeExecutor(plan.cores.workers));
  SLUICE_ASSIGN_OR_RETURN(seams.device, DeviceOf(plan, config));
  seams.device_reason = plan.device.reason;
  SLUICE_ASSIGN_OR_RETURN(seams.files, CreateSegments(seams.segments));
  seams.make_engine = [config](std::span<const MemoryView> arenas,
                               std::span<const DirectFile> files) {
    absl::StatusOr<std::unique_ptr<IoEngine>> engine =
        MakeIoEngine(config.engine, files, arenas, config.io, RealClock());
    // One that was there when it was tuned, and is not now, is no reason to end.
    if (!engine.ok() && config.io_settings.engine == SettingFrom::kTuned)
      engine = MakeIoEngine(IoEngineKind::kAuto, files, arenas, config.io, RealClock());
    return engine;
  };
  if (*ranks && plan.device.kind == DeviceKind::kCuda)
    SLUICE_RETURN_IF_ERROR(PutOnGpus(ranks, config, plan.device.index));
  if (config.sharding.ranks > 1) seams.ranks = std::move(*ranks);
  seams.checkpoint_files = config.checkpoint_files;
  const RuntimeOptions options = OptionsOf(config, plan);
  return OffloadRuntime::Create(std::move(plan.layout), std::move(plan.placement), options,
                                std::move(seams));
}

}  // namespace

absl::StatusOr<std::unique_ptr<OffloadRuntime>> MakeRuntime(const ModelSpec& spec,
                                                            const RuntimeConfig& config,
                                                            RankLinks ranks) {
  SLUICE_CHECK(ranks ? ranks.agreement->ranks() == config.sharding.ranks
                     : config.sharding.ranks == 1);
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> made = TryToMakeRuntime(spec, config, &ranks);
  if (!made.ok()) ranks.GiveUp(made.status());
  return made;
}

}  // namespace sluice
