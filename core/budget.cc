#include "core/budget.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(fmt::format("{} can't be read", path));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

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

// One memory cgroup: where its files are, and what they are called in its version.
struct CgroupFiles {
  std::string mount;
  std::string path;  // below mount, "" or "/a/b"
  const char* limit;
  const char* used;
  const char* reclaimable;  // key in memory.stat
};

std::vector<CgroupFiles> FindCgroups(const FileReader& read) {
  std::vector<CgroupFiles> found;
  const absl::StatusOr<std::string> text = read("/proc/self/cgroup");
  if (!text.ok()) return found;
  std::istringstream lines(*text);
  std::string line;
  while (std::getline(lines, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (!path.empty() && path.front() != '/') continue;
    if (controllers.empty()) {
      for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
        found.push_back({mount, path, "memory.max", "memory.current", "inactive_file"});
      }
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      found.push_back({"/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                       "memory.usage_in_bytes", "total_inactive_file"});
    }
  }
  return found;
}

void ApplyCgroup(const FileReader& read, const CgroupFiles& files, MemoryLimits* limits) {
  std::string path = files.path;
  for (;;) {
    const std::string directory = files.mount + path;
    const std::optional<int64_t> limit = ReadNumber(read, directory + "/" + files.limit);
    if (limit && Bytes(*limit) < limits->machine_total &&
        (!limits->cgroup_limit || Bytes(*limit) < *limits->cgroup_limit)) {
      const int64_t used = ReadNumber(read, directory + "/" + files.used).value_or(0);
      int64_t reclaimable = 0;
      if (const auto stat = read(directory + "/memory.stat"); stat.ok()) {
        reclaimable = FindNumber(*stat, std::string(files.reclaimable) + " ").value_or(0);
      }
      limits->cgroup_limit = Bytes(*limit);
      limits->cgroup_used = Bytes(std::max<int64_t>(0, used - reclaimable));
      limits->cgroup_path = directory + "/" + files.limit;
    }
    if (path.empty()) return;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

Bytes MemoryLimits::available() const {
  if (!cgroup_limit) return machine_available;
  return std::min(machine_available, std::max(Bytes(0), *cgroup_limit - cgroup_used));
}

absl::StatusOr<MemoryLimits> ReadMemoryLimits(const std::string& root) {
  return MemoryLimitsOf([&root](const std::string& path) { return ReadAll(root + path); });
}

absl::StatusOr<MemoryLimits> MemoryLimitsOf(const FileReader& read) {
  SLUICE_ASSIGN_OR_RETURN(const std::string meminfo, read("/proc/meminfo"));
  const std::optional<int64_t> total = FindNumber(meminfo, "MemTotal:");
  const std::optional<int64_t> available = FindNumber(meminfo, "MemAvailable:");
  if (!total || !available) {
    return absl::InvalidArgumentError("/proc/meminfo has no MemTotal or MemAvailable");
  }
  MemoryLimits limits{.machine_total = Bytes(*total), .machine_available = Bytes(*available)};
  for (const CgroupFiles& files : FindCgroups(read)) ApplyCgroup(read, files, &limits);
  return limits;
}

absl::StatusOr<ProcessMemory> ReadProcessMemory() {
  SLUICE_ASSIGN_OR_RETURN(const std::string status, ReadAll("/proc/self/status"));
  return ProcessMemory{.rss = Bytes(FindNumber(status, "VmRSS:").value_or(0)),
                       .rss_peak = Bytes(FindNumber(status, "VmHWM:").value_or(0))};
}

absl::StatusOr<ProcessIo> ReadProcessIo() {
  SLUICE_ASSIGN_OR_RETURN(const std::string io, ReadAll("/proc/self/io"));
  return ProcessIo{.read = Bytes(FindNumber(io, "read_bytes:").value_or(0)),
                   .written = Bytes(FindNumber(io, "write_bytes:").value_or(0))};
}

}  // namespace sluice
