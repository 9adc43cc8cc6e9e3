// core/topology.h
//
// The cores and NUMA nodes this process may use (affinity mask and cgroup CPU quota respected).
// Read once at start.

#ifndef SLUICE_CORE_TOPOLOGY_H_
#define SLUICE_CORE_TOPOLOGY_H_

#include <string>

#include "absl/status/statusor.h"

namespace sluice {

struct Topology {
  int cores_allowed = 1;  // hardware threads in the affinity mask, at most the quota rounded up
  int cores_machine = 1;
  int numa_nodes = 1;
  std::string cpu_model;
};

absl::StatusOr<Topology> DetectTopology();

}  // namespace sluice

#endif  // SLUICE_CORE_TOPOLOGY_H_
