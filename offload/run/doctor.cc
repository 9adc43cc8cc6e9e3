#include "offload/run/doctor.h"

#include <sys/resource.h>

#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/budget.h"
#include "core/config.h"
#include "core/device_choice.h"
#include "core/json_text.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "nvme/io_engine.h"
#include "optim/adamw.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

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
