// core/topology.h
//
// The cores and NUMA nodes this process may use (affinity mask and cgroup CPU quota respected).
// Read once at start. Where an OpenMP runtime has bound the calling thread to a place
// (OMP_PROC_BIND), the cores of all its places are allowed, not only those.

#ifndef SLUICE_CORE_TOPOLOGY_H_
#define SLUICE_CORE_TOPOLOGY_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice {

struct Topology {
  std::vector<int> cores;  // hardware threads this process may run on, ascending
  int cores_allowed = 1;   // how many of them at a time: at most the quota rounded up
  int cores_machine = 1;
  int numa_nodes = 1;
  std::string cpu_model;
};

absl::StatusOr<Topology> DetectTopology();

struct AllowedCores {
  std::vector<int> cores;  // as in Topology
  int count = 1;           // Topology::cores_allowed
};
// These two by themselves, in less than a millisecond. None: the kernel doesn't say.
std::optional<AllowedCores> FindAllowedCores();

}  // namespace sluice

#endif  // SLUICE_CORE_TOPOLOGY_H_
