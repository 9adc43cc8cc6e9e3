#include "core/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>

#include "core/cgroup.h"
#include "core/numa.h"
#include "core/openmp_runtimes.h"
#include "core/status.h"

namespace sluice {

std::optional<AllowedCores> FindAllowedCores() {
  const std::vector<int> mask = CoresOfThread(), places = OpenMpPlaces();
  if (mask.empty()) return std::nullopt;
  AllowedCores allowed;
  std::set_union(mask.begin(), mask.end(), places.begin(), places.end(),
                 std::back_inserter(allowed.cores));
  allowed.count = static_cast<int>(allowed.cores.size());
  if (const auto quota = FindCpuQuota(FilesBelow("")); quota) {
    const double cores = std::min(std::ceil(quota->cores), static_cast<double>(INT_MAX));
    allowed.count = std::clamp(static_cast<int>(cores), 1, allowed.count);
  }
  return allowed;
}

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
  if (std::optional<AllowedCores> allowed = FindAllowedCores()) {
    result.cores = std::move(allowed->cores);
    result.cores_allowed = allowed->count;
  } else {
    result.cores_allowed = result.cores_machine;
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
