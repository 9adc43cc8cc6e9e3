#include "offload/run/doctor.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/budget.h"
#include "core/cgroup.h"
#include "core/config.h"
#include "core/device_choice.h"
#include "core/json_text.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "nvme/drive_info.h"
#include "nvme/io_engine.h"
#include "optim/adamw.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

// What to do, in order, and what it comes to.
class Findings {
 public:
  void Note(std::string text) { advice_.push_back(std::move(text)); }
  void Slower(std::string text) {
    slower_ = true;
    Note(std::move(text));
  }
  void CannotRun(std::string text) {
    cannot_ = true;
    Note(std::move(text));
  }
  const char* verdict() const { return cannot_ ? "cannot run" : slower_ ? "slower" : "fine"; }
  Json& advice() { return advice_; }

 private:
  Json advice_ = Json::array();
  bool slower_ = false;
  bool cannot_ = false;
};

Json DriveReport(const DriveInfo& drive, const std::vector<int>& cores, Findings* findings) {
  Json report = {{"name", drive.name}};
  report["model"] = drive.model.empty() ? Json() : Json(drive.model);
  report["bus"] = drive.bus.empty() ? Json() : Json(drive.bus);
  report["numa_node"] = drive.node ? Json(*drive.node) : Json();
  int distance = -1;
  if (drive.node) distance = NumaDistance(FilesBelow(""), *drive.node, cores).value_or(-1);
  report["numa_distance"] = distance < 0 ? Json() : Json(distance);
  for (const std::string& text : drive.held_back) findings->Slower(text);
  if (distance > 10) {
    findings->Slower(fmt::format(
        "{} is near node {}, and no core that may be used is there: numactl --cpunodebind={} "
        "--preferred={} COMMAND",
        drive.name, *drive.node, *drive.node, *drive.node));
  }
  return report;
}

Json PathReport(const std::string& path, const std::vector<int>& cores, Findings* findings) {
  Json report = {{"path", path}};
  const absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(path, KiB(64));
  if (!file.ok()) {
    report["error"] = std::string(Message(file.status()));
    findings->CannotRun(fmt::format(
        "{0}: choose a directory on a local drive that you may write to, or, as root: mkdir -p {0} "
        "&& chown {1} {0}",
        path, geteuid()));
    return report;
  }
  report["description"] = file->description();
  report["direct_io"] = file->direct();
  if (const auto free = FreeSpace(path); free.ok()) report["free_bytes"] = free->value();
  const std::optional<DriveInfo> drive = FindDriveOf(FilesBelow(""), path);
  report["drive"] = drive ? DriveReport(*drive, cores, findings) : Json();
  if (file->in_ram()) {
    findings->Slower(fmt::format(
        "{}: this lies in RAM, and swap files there count as such: choose a directory on a drive "
        "(df -t ext4 -t xfs lists some)",
        path));
  }
  if (file->may_run_out()) {
    findings->Slower(fmt::format(
        "{}: copy on write can't be turned off here, so that space may run out in the middle of a "
        "run: use ext4, xfs or btrfs, or keep much of it free",
        path));
  }
  if (!file->direct() && !file->in_ram()) {
    findings->Slower(fmt::format(
        "{}: no direct I/O here, so data passes through the page cache; use ext4 or xfs on a local "
        "drive (df -t ext4 -t xfs lists some)",
        path));
  }
  return report;
}

// The engine that would be chosen, made for a moment over a file in `path` and a small arena, so
// that what it says of registering either is true here.
std::string EngineReport(const std::string& path, MemoryResource* memory, Findings* findings) {
  SteadyClock clock;
  std::vector<DirectFile> files;
  if (auto file = DirectFile::CreateUnnamed(path, KiB(64)); !path.empty() && file.ok())
    files.push_back(*std::move(file));
  absl::StatusOr<Arena> arena = Arena::Create(memory, MiB(2));
  if (!arena.ok()) {
    findings->CannotRun(std::string(Message(arena.status())));
    return std::string(Message(arena.status()));
  }
  const MemoryView view = arena->memory();
  const auto engine = MakeIoEngine(IoEngineKind::kAuto, files, {&view, 1}, {}, &clock);
  if (!engine.ok()) {
    findings->CannotRun(std::string(Message(engine.status())));
    return std::string(Message(engine.status()));
  }
  std::string description = (*engine)->description();
  if (const absl::Status closed = (*engine)->Close(); !closed.ok())
    findings->Slower(std::string(Message(closed)));
  const auto uring = MakeIoEngine(IoEngineKind::kIoUring, {}, {}, {}, &clock);
  const absl::Status status = uring.ok() ? (*uring)->Close() : uring.status();
  if (!status.ok()) {
    findings->Slower(fmt::format(
        "{}; to allow it, as root: sysctl kernel.io_uring_disabled=0; in a container, a seccomp "
        "profile that has io_uring: docker run --security-opt seccomp=FILE",
        Message(status)));
  }
  return description;
}

// Whether the limit on locked memory does not hold for this process: CAP_IPC_LOCK lifts it.
bool MayLockAll() {
  constexpr uint64_t kIpcLock = uint64_t{1} << 14;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:"))
      return (std::strtoull(line.c_str() + 7, nullptr, 16) & kIpcLock) != 0;
  }
  return false;
}

Json LockedReport(Findings* findings) {
  rlimit lock{};
  SLUICE_CHECK(getrlimit(RLIMIT_MEMLOCK, &lock) == 0);  // it only fails for a wrong argument
  if (lock.rlim_cur == RLIM_INFINITY) return -1;
  if (!MayLockAll()) {
    findings->Slower(fmt::format(
        "at most {} may be locked, so larger buffers are not registered with io_uring, which costs "
        "some CPU: ulimit -l unlimited; if that is refused, '* - memlock unlimited' in "
        "/etc/security/limits.conf, LimitMEMLOCK=infinity of a service, or docker run --ulimit "
        "memlock=-1",
        FormatBytes(Bytes(static_cast<int64_t>(lock.rlim_cur)))));
  }
  return static_cast<int64_t>(lock.rlim_cur);
}

Json CpuReport(const Topology& topology, Findings* findings) {
  Json cpu = {{"model", topology.cpu_model},
              {"cores_allowed", topology.cores_allowed},
              {"cores_machine", topology.cores_machine},
              {"numa_nodes", topology.numa_nodes}};
  const std::optional<CpuQuota> quota = FindCpuQuota(FilesBelow(""));
  cpu["quota_cores"] = quota ? Json(quota->cores) : Json();
  if (quota && quota->cores < topology.cores_machine) {
    findings->Slower(
        fmt::format("a cgroup allows {:.1f} of {} cores ({}); to lift that, as root: echo max > {}",
                    quota->cores, topology.cores_machine, quota->path, quota->path));
  }
  return cpu;
}

}  // namespace

std::string DoctorJson(const std::string& path) {
  Findings findings;
  Json report;
  std::vector<int> cores;
  if (const auto topology = DetectTopology(); topology.ok()) {
    cores = topology->cores;
    report["cpu"] = CpuReport(*topology, &findings);
  } else {
    report["cpu"] = {{"error", std::string(Message(topology.status()))}};
    findings.CannotRun(std::string(Message(topology.status())));
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
    findings.CannotRun(std::string(Message(limits.status())));
  }
  HugePageResource huge;
  report["huge_pages"] = huge.description();
  if (report["huge_pages"].get<std::string>().starts_with("4 KiB")) {
    findings.Slower(
        fmt::format("transfers run at about 0.6 of what huge pages give: {}", huge.description()));
  }
  report["engine"] = EngineReport(path, &huge, &findings);
  report["memlock_limit_bytes"] = LockedReport(&findings);
  if (const auto device = ChooseDevice(DeviceKind::kAuto, 0); device.ok()) {
    report["device"] = fmt::format("{}: {}", Name(device->kind), device->reason);
    if (device->kind == DeviceKind::kHost)
      findings.Note(device->reason + "; the host device computes in RAM");
  } else {
    report["device"] = {{"error", std::string(Message(device.status()))}};
    findings.CannotRun(std::string(Message(device.status())));
  }
  if (!path.empty()) report["path"] = PathReport(path, cores, &findings);
  report["verdict"] = findings.verdict();
  report["advice"] = std::move(findings.advice());
  return JsonText(std::move(report), 2);
}

}  // namespace sluice
