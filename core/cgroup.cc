#include "core/cgroup.h"

#include <cmath>
#include <fstream>
#include <sstream>
#include <utility>

#include "fmt/format.h"

namespace sluice {

namespace {

bool Lists(std::string_view names, std::string_view name) {  // "cpu,cpuacct" and "cpu"
  return fmt::format(",{},", names).find(fmt::format(",{},", name)) != std::string::npos;
}

// A mounted hierarchy: where, and which of its cgroups is seen there as the root.
struct Mount {
  std::string point;
  std::string root;
};

// A line reads "32 31 0:29 ROOT POINT options [more] - type device super-options".
std::vector<Mount> FindMounts(const FileReader& read, int version, std::string_view controller) {
  std::vector<Mount> found;
  const absl::StatusOr<std::string> text = read("/proc/self/mountinfo");
  std::istringstream lines(text.ok() ? *text : "");
  std::string line;
  while (std::getline(lines, line)) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string skipped, type, options;
    Mount mount;
    before >> skipped >> skipped >> skipped >> mount.root >> mount.point;
    after >> type >> skipped >> options;
    if (mount.point.empty()) continue;
    if (mount.root == "/") mount.root.clear();
    if (version == 2 ? type == "cgroup2" : type == "cgroup" && Lists(options, controller))
      found.push_back(std::move(mount));
  }
  return found;
}

std::vector<Mount> UsualMounts(int version, std::string_view controller) {
  if (version == 2) return {{"/sys/fs/cgroup", ""}, {"/sys/fs/cgroup/unified", ""}};
  return {{fmt::format("/sys/fs/cgroup/{}", controller), ""}};
}

// `path` as seen below a mount of `root`. A path that doesn't lie there is one that the mount's
// owner didn't mean us to see, and only the mount's root is ours.
std::string Below(const std::string& root, const std::string& path) {
  if (!path.starts_with(root)) return path;
  const std::string rest = path.substr(root.size());
  return rest.empty() || rest.front() == '/' ? rest : path;
}

std::optional<CpuQuota> QuotaAt(const FileReader& read, const CgroupLevel& level) {
  double quota = 0;
  double period = 0;
  std::string path = level.directory + "/cpu.max";
  if (level.version == 2) {
    const absl::StatusOr<std::string> text = read(path);
    std::istringstream numbers(text.ok() ? *text : "");
    if (!(numbers >> quota >> period)) return std::nullopt;  // "max 100000", or nothing
  } else {
    path = level.directory + "/cpu.cfs_quota_us";
    const absl::StatusOr<std::string> first = read(path);
    const absl::StatusOr<std::string> second = read(level.directory + "/cpu.cfs_period_us");
    if (!first.ok() || !second.ok()) return std::nullopt;
    std::istringstream quota_text(*first);
    std::istringstream period_text(*second);
    if (!(quota_text >> quota) || !(period_text >> period)) return std::nullopt;
  }
  const double cores = quota / period;
  if (!(quota > 0) || !(period > 0) || !std::isfinite(cores)) return std::nullopt;
  return CpuQuota{.cores = cores, .path = std::move(path)};
}

}  // namespace

FileReader FilesBelow(std::string root) {
  return [root = std::move(root)](const std::string& path) -> absl::StatusOr<std::string> {
    std::ifstream file(root + path);
    if (!file) return absl::NotFoundError(fmt::format("{}{} can't be read", root, path));
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  };
}

std::vector<CgroupLevel> CgroupLevels(const FileReader& read, std::string_view controller) {
  std::vector<CgroupLevel> levels;
  const absl::StatusOr<std::string> text = read("/proc/self/cgroup");
  std::istringstream lines(text.ok() ? *text : "");
  std::string line;
  while (std::getline(lines, line)) {  // "0::/a/b", or "7:cpu,cpuacct:/a/b"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const int version = controllers.empty() ? 2 : 1;
    std::string own = line.substr(second + 1);
    if (own == "/") own.clear();
    if (!own.empty() && own.front() != '/') continue;
    if (version == 1 && !Lists(controllers, controller)) continue;
    std::vector<Mount> mounts = FindMounts(read, version, controller);
    if (mounts.empty()) mounts = UsualMounts(version, controller);
    for (const Mount& mount : mounts) {
      std::string path = Below(mount.root, own);
      for (;; path.resize(path.rfind('/'))) {
        levels.push_back({.directory = mount.point + path, .version = version});
        if (path.empty()) break;
      }
    }
  }
  return levels;
}

std::optional<CpuQuota> FindCpuQuota(const FileReader& read) {
  std::optional<CpuQuota> tightest;
  for (const CgroupLevel& level : CgroupLevels(read, "cpu")) {
    std::optional<CpuQuota> quota = QuotaAt(read, level);
    if (quota && (!tightest || quota->cores < tightest->cores)) tightest = std::move(quota);
  }
  return tightest;
}

}  // namespace sluice
