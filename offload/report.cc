#include "offload/report.h"

#include <sys/resource.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/budget.h"
#include "core/config.h"
#include "core/executor.h"
#include "core/json_text.h"
#include "core/status.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "nvme/io_engine.h"
#include "offload/runtime.h"
#include "optim/adamw.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

Json Tiers(Bytes hbm, Bytes pinned, Bytes nvme) {
  return {{"hbm", hbm.value()}, {"pinned", pinned.value()}, {"nvme", nvme.value()}};
}

// The pairs of types that units have, in the order of the first unit of each.
Json TypesObject(const ModelLayout& layout) {
  struct Pair {
    UnitTypes types;
    int64_t units = 0;
    Bytes params;
  };
  std::vector<Pair> pairs;
  for (const UnitLayout& unit : layout.units()) {
    auto pair = std::find_if(pairs.begin(), pairs.end(),
                             [&unit](const Pair& p) { return p.types == unit.types; });
    if (pair == pairs.end()) pair = pairs.insert(pairs.end(), {.types = unit.types});
    ++pair->units;
    pair->params += unit.param_bytes();
  }
  Json list = Json::array();
  for (const Pair& pair : pairs) {
    list.push_back({{"param_dtype", pair.types.param.name()},
                    {"grad_dtype", Name(pair.types.grad)},
                    {"units", pair.units},
                    {"param_bytes", pair.params.value()}});
  }
  return list;
}

Json PlacementObject(const ModelLayout& layout, const Placement& p, const Budgets& budgets) {
  int64_t params[3] = {0, 0, 0};
  for (size_t u = 0; u < layout.units().size(); ++u) {
    params[static_cast<int>(p.param_home[u])] += layout.units()[u].param_bytes().value();
  }
  const StepTraffic traffic = TrafficOf(layout, p);
  const bool grads_in_hbm = p.grad_home == Tier::kHbm;
  return {
      {"parameters", layout.parameter_count()},
      {"parameters_updated", layout.updated_count()},
      {"units", layout.units().size()},
      {"tensors", layout.tensors().size()},
      {"chunks", layout.chunks().size()},
      {"chunk_elements", layout.chunk_elements()},
      {"param_dtype", layout.default_types().param.name()},
      {"grad_dtype", Name(layout.default_types().grad)},
      {"types", TypesObject(layout)},
      {"budgets_bytes", Tiers(budgets.hbm, budgets.pinned, budgets.nvme)},
      {"planned_bytes", Tiers(p.hbm(), p.pinned(), p.nvme())},
      {"hbm",
       {{"resident_bytes", p.hbm_fixed.value()},
        {"cache_bytes", p.hbm_cache.value()},
        {"gradients_bytes", grads_in_hbm ? p.grads.value() : 0},
        {"states_bytes", p.states_hbm.value()}}},
      {"pinned",
       {{"least_bytes", p.least_pinned.total().value()},
        {"gradients_bytes", grads_in_hbm ? 0 : p.grads.value()},
        {"params_bytes", p.params_pinned.value()},
        {"states_bytes", p.states_pinned.value()},
        {"state_buffers", p.state_buffers},
        {"state_buffer_bytes", p.state_buffer_bytes.value()},
        {"param_buffers", p.param_buffers},
        {"param_buffer_bytes", p.param_buffer_bytes.value()}}},
      {"nvme", {{"states_bytes", p.states_nvme.value()}, {"params_bytes", p.params_nvme.value()}}},
      {"params_home_bytes", Tiers(Bytes(params[0]), Bytes(params[1]), Bytes(params[2]))},
      {"step_traffic",
       {{"elements_updated", traffic.elements_updated},
        {"nvme_read_bytes", traffic.nvme_read.value()},
        {"nvme_write_bytes", traffic.nvme_written.value()},
        {"read_ahead_bytes", traffic.read_ahead.value()},
        {"checksummed_bytes", traffic.checksummed.value()},
        {"to_hbm_bytes", traffic.to_hbm.value()},
        {"gradient_bytes", traffic.grads.value()}}}};
}

Json DeviceObject(const DeviceChoice& device) {
  return {{"kind", Name(device.kind)}, {"index", device.index}, {"reason", device.reason}};
}

Json PathReport(const std::string& path, Json* advice) {
  Json report = {{"path", path}};
  const absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(path, KiB(64));
  if (!file.ok()) {
    report["error"] = std::string(Message(file.status()));
    advice->push_back(
        fmt::format("{}: choose a directory on a local drive that you may write to", path));
    return report;
  }
  report["description"] = file->description();
  report["direct_io"] = file->direct();
  if (const auto free = FreeSpace(path); free.ok()) report["free_bytes"] = free->value();
  if (file->in_ram()) {
    advice->push_back(fmt::format(
        "{}: this lies in RAM, and swap files there count as such: choose a directory on a drive",
        path));
  }
  if (file->may_run_out()) {
    advice->push_back(fmt::format(
        "{}: copy on write can't be turned off here, so that space may run out in the middle of a "
        "run: use ext4, xfs or btrfs, or keep much of it free",
        path));
  }
  if (!file->direct()) {
    advice->push_back(fmt::format(
        "{}: no direct I/O here, so data passes through the page cache; use ext4 or xfs on a local "
        "drive",
        path));
  }
  return report;
}

// The engine that would be chosen, made for a moment over a file in `path` and a small arena, so
// that what it says of registering either is true here.
std::string EngineReport(const std::string& path, MemoryResource* memory, Json* advice) {
  SteadyClock clock;
  std::vector<DirectFile> files;
  if (auto file = DirectFile::CreateUnnamed(path, KiB(64)); !path.empty() && file.ok())
    files.push_back(*std::move(file));
  absl::StatusOr<Arena> arena = Arena::Create(memory, MiB(2));
  if (!arena.ok()) return std::string(Message(arena.status()));
  const MemoryView view = arena->memory();
  const auto engine = MakeIoEngine(IoEngineKind::kAuto, files, {&view, 1}, {}, &clock);
  if (!engine.ok()) return std::string(Message(engine.status()));
  std::string description = (*engine)->description();
  if (const absl::Status closed = (*engine)->Close(); !closed.ok())
    advice->push_back(std::string(Message(closed)));
  const auto uring = MakeIoEngine(IoEngineKind::kIoUring, {}, {}, {}, &clock);
  const absl::Status status = uring.ok() ? (*uring)->Close() : uring.status();
  if (!status.ok()) advice->push_back(std::string(Message(status)));
  return description;
}

}  // namespace

StepTraffic TrafficOf(const ModelLayout& layout, const Placement& p) {
  StepTraffic t;
  if (p.grad_home == Tier::kHbm) return t;  // nothing moves
  t.elements_updated = layout.updated_count();
  t.nvme_read = p.states_nvme;
  t.nvme_written = p.states_nvme;
  for (const ChunkLayout& chunk : layout.chunks()) {
    if (p.param_home[chunk.unit.value()] == Tier::kNvme && chunk.keep != Keep::kParam)
      t.nvme_written += RoundUp(chunk.param_bytes(), p.io_alignment);
  }
  t.read_ahead = std::min(p.states_nvme, p.state_buffer_bytes * p.state_buffers);
  const double evicted = p.hbm() == Bytes(0) ? 0.0 : 1.0;
  Bytes streamed;  // units that don't live in HBM
  for (size_t u = 0; u < p.param_home.size(); ++u) {
    if (p.param_home[u] != Tier::kHbm) streamed += p.slot_bytes[u];
  }
  // Forward brings in all of them; backward what the cache did not keep.
  t.to_hbm = streamed + (evicted > 0 ? std::max(Bytes(0), streamed - p.hbm_cache) : Bytes(0));
  t.nvme_read += p.params_nvme;
  if (streamed > Bytes(0)) {
    const double share =
        static_cast<double>(p.params_nvme.value()) / static_cast<double>(streamed.value());
    t.nvme_read +=
        Bytes(static_cast<int64_t>(share * static_cast<double>((t.to_hbm - streamed).value())));
  }
  t.checksummed = t.nvme_read + t.nvme_written;
  for (const TensorLayout& tensor : layout.tensors()) {
    if (tensor.keep != Keep::kParam) t.grads += Bytes(tensor.elements * SizeOf(tensor.types.grad));
  }
  return t;
}

std::string PlacementJson(const ModelLayout& layout, const DeviceChoice& device,
                          const Placement& placement, const Budgets& budgets) {
  Json json = PlacementObject(layout, placement, budgets);
  json["device"] = DeviceObject(device);
  return JsonText(std::move(json), 2);
}

StepTraffic OffloadRuntime::Traffic() const { return TrafficOf(layout_, placement_); }

std::string OffloadRuntime::ReportJson() const {
  Json report = PlacementObject(layout_, placement_, options_.budgets);
  Bytes on_disk;
  Json paths = Json::array();
  for (const DirectFile& file : seams_.files) {
    on_disk += file.allocated();
    paths.push_back(file.description());
  }
  report["bytes_now"] = Tiers(hbm_->size(), memory_.pinned.size(), on_disk);
  report["engine"] = engine_->description();
  report["executor"] = seams_.executor->description();
  report["device"] = seams_.device->description();
  report["device_reason"] = seams_.device_reason;
  report["pinned_memory"] = pinning_;
  report["memory"] = seams_.host_memory->description() +
                     (seams_.ram_unchecked.empty() ? "" : "; " + seams_.ram_unchecked);
  report["vector_target"] = VectorTarget();
  report["paths"] = std::move(paths);
  report["counters"] = metrics_.Snapshot();
  report["trace_spans_dropped"] = trace_.dropped();
  const StepResult step = last_step();
  report["loss_scale"] = step.loss_scale;
  report["failure"] = std::string(Message(failure()));
  return JsonText(std::move(report), 2);
}

std::string DoctorJson(const std::string& path) {
  Json advice = Json::array();
  Json report;
  if (const auto topology = DetectTopology(); topology.ok()) {
    report["cpu"] = {{"model", topology->cpu_model},
                     {"cores_allowed", topology->cores_allowed},
                     {"cores_machine", topology->cores_machine},
                     {"numa_nodes", topology->numa_nodes}};
  }
  report["vector_target"] = VectorTarget();
  if (const auto limits = ReadMemoryLimits(); limits.ok()) {
    Json memory = {{"machine_bytes", limits->machine_total.value()},
                   {"available_bytes", limits->available().value()}};
    if (limits->cgroup_limit) {
      memory["cgroup_limit_bytes"] = limits->cgroup_limit->value();
      memory["cgroup_used_bytes"] = limits->cgroup_used.value();
      memory["cgroup_path"] = limits->cgroup_path;
    }
    report["memory"] = std::move(memory);
  } else {
    report["memory"] = {{"error", std::string(Message(limits.status()))}};
  }
  HugePageResource huge;
  report["huge_pages"] = huge.description();
  if (report["huge_pages"].get<std::string>().starts_with("4 KiB")) {
    advice.push_back(
        fmt::format("transfers run at about 0.6 of what huge pages give: {}", huge.description()));
  }
  report["engine"] = EngineReport(path, &huge, &advice);
  rlimit lock{};
  getrlimit(RLIMIT_MEMLOCK, &lock);
  report["memlock_limit_bytes"] =
      lock.rlim_cur == RLIM_INFINITY ? int64_t{-1} : static_cast<int64_t>(lock.rlim_cur);
  if (const auto device = ChooseDevice(DeviceKind::kAuto, 0); device.ok()) {
    report["device"] = fmt::format("{}: {}", Name(device->kind), device->reason);
    if (device->kind == DeviceKind::kHost)
      advice.push_back(device->reason + "; the host device computes in RAM");
  }
  if (!path.empty()) report["path"] = PathReport(path, &advice);
  report["advice"] = std::move(advice);
  return JsonText(std::move(report), 2);
}

}  // namespace sluice
