#include "core/budget.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// The number (not negative, and small enough to be one of bytes) that follows `key` at the start of
// a line ("MemTotal:  123 kB"), times 1024 if "kB" follows.
std::optional<int64_t> FindNumber(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream rest(line.substr(key.size()));
    int64_t value = 0;
    std::string unit;
    if (!(rest >> value) || value < 0 || value > INT64_MAX / 1024) return std::nullopt;
    rest >> unit;
    return unit == "kB" ? value * 1024 : value;
  }
  return std::nullopt;
}

std::optional<int64_t> ReadNumber(const FileReader& read, const std::string& path) {
  const absl::StatusOr<std::string> text = read(path);
  if (!text.ok()) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;  // "max", or nothing
  return value;
}

// What a level allows, and what the file says so. Beyond memory.high the kernel reclaims and slows
// the process down to a crawl instead of ending it, so for planning it is a limit as well.
struct Limit {
  int64_t bytes;
  std::string path;
};
std::optional<Limit> LimitAt(const FileReader& read, const CgroupLevel& level) {
  std::optional<Limit> lowest;
  const auto consider = [&lowest](std::optional<int64_t> bytes, std::string path) {
    if (bytes && (!lowest || *bytes < lowest->bytes)) lowest = {*bytes, std::move(path)};
  };
  if (level.version == 2) {
    for (const char* name : {"/memory.max", "/memory.high"})
      consider(ReadNumber(read, level.directory + name), level.directory + name);
    return lowest;
  }
  const std::string path = level.directory + "/memory.limit_in_bytes";
  consider(ReadNumber(read, path), path);
  // Parents that can't be seen from here limit it too.
  const std::string stat = level.directory + "/memory.stat";
  if (const auto text = read(stat); text.ok())
    consider(FindNumber(*text, "hierarchical_memory_limit "), stat);
  return lowest;
}

// What is in use at a level and would not be given up for a new allocation. File pages are, both
// lists of them, and so is reclaimable slab: as MemAvailable counts for the machine. Pages of tmpfs
// are on neither list.
int64_t UsedAt(const FileReader& read, const CgroupLevel& level) {
  const bool v2 = level.version == 2;
  const int64_t used =
      ReadNumber(read, level.directory + (v2 ? "/memory.current" : "/memory.usage_in_bytes"))
          .value_or(0);
  const auto stat = read(level.directory + "/memory.stat");
  if (!stat.ok()) return used;
  int64_t reclaimable = 0;
  for (const char* key : {"inactive_file ", "active_file ", "slab_reclaimable "}) {
    const std::optional<int64_t> bytes = FindNumber(*stat, v2 ? key : fmt::format("total_{}", key));
    reclaimable += std::min(used, bytes.value_or(0));
  }
  return std::max<int64_t>(0, used - reclaimable);
}

}  // namespace

Bytes MemoryLimits::available() const {
  return cgroup_limit ? std::min(machine_available, CgroupHeadroom()) : machine_available;
}

Bytes MemoryLimits::CgroupHeadroom() const {
  return std::max(Bytes(0), *cgroup_limit - cgroup_used);
}

std::string MemoryLimits::reason() const {
  if (!cgroup_limit || machine_available < CgroupHeadroom()) {
    return fmt::format("the machine has {} available of {}", FormatBytes(machine_available),
                       FormatBytes(machine_total));
  }
  return fmt::format("the cgroup allows {} and has used {}, says {}", FormatBytes(*cgroup_limit),
                     FormatBytes(cgroup_used), cgroup_path);
}

absl::StatusOr<MemoryLimits> ReadMemoryLimits(const std::string& root) {
  return MemoryLimitsOf(FilesBelow(root));
}

absl::StatusOr<MemoryLimits> MemoryLimitsOf(const FileReader& read) {
  SLUICE_ASSIGN_OR_RETURN(const std::string meminfo, read("/proc/meminfo"));
  const std::optional<int64_t> total = FindNumber(meminfo, "MemTotal:");
  const std::optional<int64_t> available = FindNumber(meminfo, "MemAvailable:");
  if (!total || !available) {
    return absl::InvalidArgumentError("/proc/meminfo has no MemTotal or MemAvailable");
  }
  MemoryLimits limits{.machine_total = Bytes(*total), .machine_available = Bytes(*available)};
  for (const CgroupLevel& level : CgroupLevels(read, "memory")) {
    const std::optional<Limit> limit = LimitAt(read, level);
    if (!limit || Bytes(limit->bytes) >= limits.machine_total) continue;
    const Bytes used(UsedAt(read, level));
    // The level that leaves least counts, not the one with the lowest limit.
    if (limits.cgroup_limit &&
        Bytes(limit->bytes) - used >= *limits.cgroup_limit - limits.cgroup_used)
      continue;
    limits.cgroup_limit = Bytes(limit->bytes);
    limits.cgroup_used = used;
    limits.cgroup_path = limit->path;
  }
  return limits;
}

absl::StatusOr<ProcessMemory> ReadProcessMemory() {
  SLUICE_ASSIGN_OR_RETURN(const std::string status, FilesBelow("")("/proc/self/status"));
  return ProcessMemory{.rss = Bytes(FindNumber(status, "VmRSS:").value_or(0)),
                       .rss_peak = Bytes(FindNumber(status, "VmHWM:").value_or(0))};
}

absl::StatusOr<ProcessIo> ReadProcessIo() {
  SLUICE_ASSIGN_OR_RETURN(const std::string io, FilesBelow("")("/proc/self/io"));
  return ProcessIo{.read = Bytes(FindNumber(io, "read_bytes:").value_or(0)),
                   .written = Bytes(FindNumber(io, "write_bytes:").value_or(0))};
}

}  // namespace sluice
