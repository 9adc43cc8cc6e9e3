// core/budget.h
//
// What memory this process may use: the machine's, and that of every memory cgroup (version 1 or 2)
// it lives in. Pure reading of /proc and /sys; allocates, blocks on file reads, any thread.

#ifndef SLUICE_CORE_BUDGET_H_
#define SLUICE_CORE_BUDGET_H_

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

struct MemoryLimits {
  Bytes machine_total;
  Bytes machine_available;  // MemAvailable
  std::optional<Bytes>
      cgroup_limit;   // the tightest limit on the way to the root, if any is below machine_total
  Bytes cgroup_used;  // of that cgroup, without reclaimable page cache; 0 without a limit
  std::string cgroup_path;  // the file the limit was read from
  // What can still be taken: the smaller of machine_available and cgroup_limit - cgroup_used.
  Bytes available() const;
};

// `root` is "" but in tests, where it is a directory holding proc/ and sys/.
// Errors: NotFound or InvalidArgument naming the file that can't be read.
absl::StatusOr<MemoryLimits> ReadMemoryLimits(const std::string& root = "");

// The same from files that `read` finds, given the path ("/proc/meminfo") of each.
using FileReader = std::function<absl::StatusOr<std::string>(const std::string& path)>;
absl::StatusOr<MemoryLimits> MemoryLimitsOf(const FileReader& read);

// Memory of this process as the kernel counts it.
struct ProcessMemory {
  Bytes rss;
  Bytes rss_peak;  // VmHWM
};
absl::StatusOr<ProcessMemory> ReadProcessMemory();

// Bytes this process caused to be read from and written to storage (/proc/self/io).
struct ProcessIo {
  Bytes read;
  Bytes written;
};
absl::StatusOr<ProcessIo> ReadProcessIo();

}  // namespace sluice

#endif  // SLUICE_CORE_BUDGET_H_
