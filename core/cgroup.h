// core/cgroup.h
//
// The cgroups that this process lives in, version 1 or 2: its own and every parent up to the root
// that is visible here. A limit at any level holds, so whoever asks looks at all of them. Pure
// reading of /proc and /sys; any thread.

#ifndef SLUICE_CORE_CGROUP_H_
#define SLUICE_CORE_CGROUP_H_

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice {

// The text of a file, given its path ("/proc/meminfo").
using FileReader = std::function<absl::StatusOr<std::string>(const std::string& path)>;

// Of files below `root`, which is "" but in tests.
FileReader FilesBelow(std::string root);

struct CgroupLevel {
  std::string directory;  // where its files are
  int version = 2;
};

// The levels that may limit `controller` ("memory", "cpu"): of each hierarchy the innermost first.
// Where hierarchies are mounted is read from /proc/self/mountinfo, or else is where everybody
// mounts them. Empty where nothing is known.
std::vector<CgroupLevel> CgroupLevels(const FileReader& read, std::string_view controller);

// What the tightest CPU quota of all levels allows, in cores; nothing without one.
struct CpuQuota {
  double cores;
  std::string path;  // the file it was read from
};
std::optional<CpuQuota> FindCpuQuota(const FileReader& read);

}  // namespace sluice

#endif  // SLUICE_CORE_CGROUP_H_
