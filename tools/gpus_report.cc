#include "tools/gpus_report.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/budget.h"
#include "core/device_choice.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

constexpr int64_t kGpusPerHostDefault = 8;

absl::StatusOr<ZeroModel> ZeroModelOf(const PlanOptions& options, const ModelSpec& spec,
                                      const RuntimeConfig& config) {
  ZeroModel model{.units = std::vector<int64_t>(spec.units.size())};
  for (const ModelSpec::Tensor& tensor : spec.tensors)
    model.units[tensor.unit.value()] += tensor.elements;
  model.types = config.types;
  model.format = config.format(config.rule->fields());
  model.gpus = options.gpus;
  model.gpus_per_host = options.gpus_per_host > 0 ? options.gpus_per_host
                                                  : std::min(options.gpus, kGpusPerHostDefault);
  if (model.gpus_per_host > model.gpus) {
    return absl::InvalidArgumentError(fmt::format(
        "--gpus-per-host {} is more than all GPUs, which are {}", model.gpus_per_host, model.gpus));
  }
  model.exchange_tier = options.device == "host" ? Tier::kPinned : Tier::kHbm;
  const int64_t asked = config.chunk_elements;
  model.chunk_elements = [asked](int64_t parameters, Tier states) {
    const int64_t least = states == Tier::kHbm ? kChunkElementsInHbm : kChunkElementsDefault;
    return asked > 0 ? asked : ChunkElementsFor(parameters, least);
  };
  return model;
}

// What was given; and of a machine with a GPU, what was not.
GpusMachine MachineOf(const PlanOptions& options, const RuntimeConfig& config) {
  GpusMachine machine;
  machine.limits.headroom_percent = options.headroom_percent;
  const auto given = [](Bytes budget, std::optional<Bytes>* limit, std::string* from) {
    if (budget < Bytes(0)) return;
    *limit = budget;
    *from = "given";
  };
  given(config.budgets.hbm, &machine.limits.hbm, &machine.hbm);
  given(config.budgets.pinned, &machine.limits.ram, &machine.ram);
  if (options.has_nvme()) given(config.budgets.nvme, &machine.limits.nvme, &machine.nvme);
  if (options.has_nvme() && !machine.limits.nvme) {
    machine.limits.nvme = kNoLimit;
    machine.nvme = "as much as is needed: --nvme-path is given, --nvme is not";
  }
  if (options.device == "host" || (machine.limits.hbm && machine.limits.ram)) return machine;
  const absl::StatusOr<DeviceChoice> gpu = ChooseDevice(DeviceKind::kAuto, 0);
  if (!gpu.ok() || gpu->kind != DeviceKind::kCuda || !gpu->memory_free) return machine;
  if (!machine.limits.hbm) {
    machine.limits.hbm = gpu->memory_free;
    machine.hbm = "free on this machine's GPU";
  }
  if (machine.limits.ram) return machine;
  const absl::StatusOr<MemoryLimits> limits = ReadMemoryLimits();
  if (!limits.ok()) return machine;
  machine.limits.ram = limits->available() - limits->available() / 8;
  machine.ram = "7/8 of what is available on this machine";
  return machine;
}

// The way of `needs` without offload that asks least of a GPU.
const ZeroNeed& LeastWithoutOffload(const std::vector<ZeroNeed>& needs) {
  const ZeroNeed* least = &needs.front();
  for (const ZeroNeed& need : needs) {
    const bool offloads = need.way.states != Tier::kHbm || need.way.params != Tier::kHbm;
    if (!offloads && need.gpu() < least->gpu()) least = &need;
  }
  return *least;
}

std::string WhyNone(const GpusReport& report) {
  const auto is = [&report](ZeroFit fit) {
    return std::ranges::any_of(report.verdicts, [fit](const auto& v) { return v.fit == fit; });
  };
  std::string missing;
  const ZeroMachine& m = report.machine.limits;
  for (const auto& [there, name] : {std::pair(m.hbm.has_value(), "--hbm"),
                                    {m.ram.has_value(), "--ram"},
                                    {m.nvme.has_value(), "--nvme"}}) {
    if (!there) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", name);
  }
  if (is(ZeroFit::kUnknown)) {
    return fmt::format("nothing is known to fit: give {} of the machine it is for", missing);
  }
  // The least of those that each tier before lets through.
  const auto least = [&report](auto of, auto lets_through) {
    const ZeroNeed* best = nullptr;
    for (const ZeroNeed& need : report.needs) {
      if (lets_through(need) && (best == nullptr || of(need) < of(*best))) best = &need;
    }
    return best;
  };
  const auto gpu = [](const ZeroNeed& need) { return need.gpu(); };
  const auto ram = [](const ZeroNeed& need) { return need.ram_least.sum(); };
  const auto nvme = [](const ZeroNeed& need) { return need.nvme_most.sum(); };
  const auto in_hbm = [&](const ZeroNeed& need) { return !m.hbm || gpu(need) <= *m.hbm; };
  const auto in_ram = [&](const ZeroNeed& need) {
    return in_hbm(need) && (!m.ram || ram(need) <= *m.ram);
  };
  const auto says = [](const char* where, Bytes bytes, const ZeroNeed& need, const char* advice) {
    return fmt::format("nothing fits: {} must hold {} at least ({}); {}", where, Decimal(bytes),
                       WayText(need.way), advice);
  };
  if (const ZeroNeed* need = least(nvme, in_ram))
    return says("NVMe of a host", nvme(*need), *need, "or more must fit in RAM");
  if (const ZeroNeed* need = least(ram, in_hbm))
    return says("RAM of a host", ram(*need), *need, "or more must fit on the GPUs");
  const ZeroNeed* need = least(gpu, [](const ZeroNeed&) { return true; });
  return says("a GPU", gpu(*need), *need,
              need->gpu_moving.sum() + need->gpu_exchange() > *m.hbm
                  ? "that is a few units: with more, smaller layers (--layers) it is less"
                  : "more GPUs would help");
}

}  // namespace

absl::StatusOr<GpusReport> MakeGpusReport(const PlanOptions& options, const HfModel& model,
                                          const RuntimeConfig& config) {
  GpusReport report;
  SLUICE_ASSIGN_OR_RETURN(report.model, ZeroModelOf(options, model.spec, config));
  report.machine = MachineOf(options, config);
  report.drives = std::max<int64_t>(1, static_cast<int64_t>(options.nvme_paths.size()));
  report.described = model.description;
  SLUICE_ASSIGN_OR_RETURN(report.needs, ZeroNeedsOf(report.model));
  for (const ZeroNeed& need : report.needs)
    report.verdicts.push_back(JudgeZero(need, report.machine.limits));
  report.best = RecommendZero(report.needs, report.machine.limits);
  return report;
}

std::string WhyRecommended(const GpusReport& report) {
  const ZeroNeed* take = report.recommended();
  if (take == nullptr) return WhyNone(report);
  const int percent = report.machine.limits.headroom_percent;
  if (report.verdicts[*report.best].fit == ZeroFit::kTight) {
    return fmt::format(
        "nothing that fits leaves {}% of HBM to activations; of what fits, this leaves most",
        percent);
  }
  std::string fits = fmt::format("leaves {}% of HBM to activations", percent);
  const ZeroWay& way = take->way;
  if (way.states != Tier::kHbm || way.params != Tier::kHbm) {
    const ZeroNeed& least = LeastWithoutOffload(report.needs);
    return fmt::format("the least offload that {}; without any, a GPU needs at least {} ({})", fits,
                       Decimal(least.gpu()), WayText(least.way));
  }
  if (way.stage == 0) return fmt::format("all of it fits on every GPU, and {}", fits);
  for (const ZeroNeed& need : report.needs) {
    if (need.way == ZeroWay{.stage = way.stage - 1}) {
      return fmt::format("the lowest stage that fits without offload and {}; stage {} needs {}",
                         fits, way.stage - 1, Decimal(need.gpu()));
    }
  }
  return fits;
}

const char* OffloadDevice(Tier tier) {
  return tier == Tier::kHbm ? "none" : tier == Tier::kPinned ? "cpu" : "nvme";
}

std::string WayText(const ZeroWay& way) {
  std::string text = fmt::format("stage {}", way.stage);
  if (way.states != Tier::kHbm) text += fmt::format(", optimizer on {}", OffloadDevice(way.states));
  if (way.params != Tier::kHbm)
    text += fmt::format(", parameters on {}", OffloadDevice(way.params));
  if (way.states == Tier::kHbm && way.params == Tier::kHbm) text += ", no offload";
  return text;
}

std::string Decimal(Bytes bytes) {
  if (bytes == Bytes(0)) return "-";
  constexpr std::array kNames = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  auto value = static_cast<double>(bytes.value());
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < kNames.size(); ++unit) value /= 1000;
  const int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", value, decimals, kNames[unit]);
}

}  // namespace sluice::tools
