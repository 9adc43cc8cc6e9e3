// core/budget.h
//
// What memory this process may use: the machine's, and that of every memory cgroup (version 1 or 2)
// it lives in. Pure reading of /proc and /sys; allocates, blocks on file reads, any thread.

#ifndef SLUICE_CORE_BUDGET_H_
#define SLUICE_CORE_BUDGET_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/cgroup.h"
#include "core/types.h"

namespace sluice {

struct MemoryLimits {
  Bytes machine_total;
  Bytes machine_available;  // MemAvailable
  // Of all limits on the way to the root that are below machine_total, if there are any, the one
  // that leaves least: limit less use. Use is without what the kernel would give up at once: file
  // pages and reclaimable slab.
  std::optional<Bytes> cgroup_limit;
  Bytes cgroup_used;        // 0 without a limit
  std::string cgroup_path;  // the file the limit was read from
  // What can still be taken: the smaller of machine_available and cgroup_limit - cgroup_used.
  Bytes available() const;
  std::string reason() const;  // which of the two that is, with numbers and the file

 private:
  Bytes CgroupHeadroom() const;
};

// `root` is "" but in tests, where it is a directory holding proc/ and sys/.
// Errors: NotFound or InvalidArgument naming the file that can't be read.
absl::StatusOr<MemoryLimits> ReadMemoryLimits(const std::string& root = "");

// The same from files that `read` finds.
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
