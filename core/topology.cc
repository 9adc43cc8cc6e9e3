#include "core/topology.h"

#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>

#include "core/status.h"

namespace sluice {

namespace {

// What the CPU quota of this process's cgroup allows, in cores; 0 without one.
double QuotaCores() {
  double quota = -1;
  double period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string first;
    if (v2 >> first >> period && first != "max") quota = std::strtod(first.c_str(), nullptr);
  } else {
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) quota = -1;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

}  // namespace

absl::StatusOr<Topology> DetectTopology() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return absl::InternalError("hwloc can't be initialised");
  const std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)> topology(
      raw, &hwloc_topology_destroy);
  if (hwloc_topology_load(raw) != 0)
    return absl::InternalError("hwloc can't read this machine's topology");

  Topology result;
  result.cores_machine = std::max(1, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_PU));
  result.numa_nodes = std::max(1, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_NUMANODE));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  result.cores_allowed = sched_getaffinity(0, sizeof(allowed), &allowed) == 0
                             ? std::max(1, CPU_COUNT(&allowed))
                             : result.cores_machine;
  if (const double quota = QuotaCores(); quota > 0) {
    result.cores_allowed = std::clamp(static_cast<int>(std::ceil(quota)), 1, result.cores_allowed);
  }
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) result.cpu_model = line.substr(colon + 2);
    break;
  }
  return result;
}

}  // namespace sluice
