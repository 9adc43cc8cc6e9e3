#include "nvme/drive_info.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string_view>

#include "core/numa.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// Without what surrounds it; empty if there is no such file.
std::string TextIn(const FileReader& read, const std::string& path) {
  const absl::StatusOr<std::string> text = read(path);
  if (!text.ok()) return "";
  const size_t begin = text->find_first_not_of(" \t\n");
  if (begin == std::string::npos) return "";
  return text->substr(begin, text->find_last_not_of(" \t\n") + 1 - begin);
}

// "vda" from lines such as "DEVNAME=vda".
std::string FieldOf(const std::string& lines, std::string_view key) {
  std::istringstream stream(lines);
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with(key)) return line.substr(key.size());
  }
  return "";
}

void FindBus(const FileReader& read, const std::string& disk, DriveInfo* drive) {
  if (!drive->name.starts_with("nvme")) {
    if (drive->name.starts_with("vd")) drive->bus = "virtio";
    if (drive->name.starts_with("sd")) drive->bus = "SCSI or SATA";
    return;
  }
  drive->bus = "NVMe";
  if (const std::string over = TextIn(read, disk + "/device/transport"); !over.empty())
    drive->bus += " over " + over;
  const std::string pci = disk + "/device/device/";
  const std::string speed = TextIn(read, pci + "current_link_speed");
  const std::string width = TextIn(read, pci + "current_link_width");
  if (speed.empty() || width.empty()) return;
  drive->bus += fmt::format(", {} x{}", speed, width);
  const std::string best_speed = TextIn(read, pci + "max_link_speed");
  const std::string best_width = TextIn(read, pci + "max_link_width");
  if (std::atof(best_speed.c_str()) > std::atof(speed.c_str()) ||
      std::atoi(best_width.c_str()) > std::atoi(width.c_str())) {
    drive->held_back.push_back(
        fmt::format("{} is linked at {} x{}, and could be at {} x{}: put it into another slot; "
                    "lspci -vv shows both ends",
                    drive->name, speed, width, best_speed, best_width));
  }
}

// A line of a cgroup's io.max is "254:0 rbps=1048576 wbps=max riops=max wiops=max".
void FindLimits(const FileReader& read, const std::string& number, DriveInfo* drive) {
  for (const CgroupLevel& level : CgroupLevels(read, "io")) {
    const std::string limits = FieldOf(TextIn(read, level.directory + "/io.max"), number + " ");
    if (limits.empty()) continue;
    drive->held_back.push_back(
        fmt::format("a cgroup limits {} to {}; to lift that, as root: echo '{} rbps=max wbps=max "
                    "riops=max wiops=max' > {}/io.max",
                    drive->name, limits, number, level.directory));
  }
}

}  // namespace

std::optional<DriveInfo> FindDrive(const FileReader& read, unsigned major, unsigned minor) {
  std::string disk = fmt::format("/sys/dev/block/{}:{}", major, minor);
  std::string event = TextIn(read, disk + "/uevent");
  if (FieldOf(event, "DEVTYPE=") == "partition") {
    disk += "/..";
    event = TextIn(read, disk + "/uevent");
  }
  DriveInfo drive{.name = FieldOf(event, "DEVNAME=")};
  if (drive.name.empty()) return std::nullopt;
  drive.model = TextIn(read, disk + "/device/model");
  // NVMe, virtio, SCSI.
  for (const char* file : {"/device/serial", "/serial", "/device/wwid"})
    if (drive.serial.empty()) drive.serial = TextIn(read, disk + file);
  constexpr int64_t kSector = 512;  // whatever the drive's own is
  const int64_t sectors = std::atoll(TextIn(read, disk + "/size").c_str());
  if (sectors > 0 && sectors < INT64_MAX / kSector) drive.size = Bytes(sectors * kSector);
  drive.node = NodeOfBlockDevice(read, major, minor);
  FindBus(read, disk, &drive);
  if (drive.name.starts_with("sd") && TextIn(read, disk + "/queue/rotational") == "1") {
    drive.held_back.push_back(fmt::format(
        "{} says that it is a disk that turns: choose a directory on an SSD", drive.name));
  }
  FindLimits(read, TextIn(read, disk + "/dev"), &drive);
  return drive;
}

std::optional<DriveInfo> FindDriveOf(const FileReader& read, const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return std::nullopt;
  return FindDrive(read, major(info.st_dev), minor(info.st_dev));
}

std::optional<int> NumaDistance(const FileReader& read, int node, const std::vector<int>& cores) {
  // One number for each node that is online, in their order.
  const std::vector<int> online = ParseNumberList(TextIn(read, "/sys/devices/system/node/online"));
  std::istringstream distances(
      TextIn(read, fmt::format("/sys/devices/system/node/node{}/distance", node)));
  const std::vector<NumaNode> nodes = ReadNumaNodes(read);
  std::optional<int> nearest;
  int distance = 0;
  for (size_t i = 0; i < online.size() && distances >> distance; ++i) {
    const auto found = std::ranges::find(nodes, online[i], &NumaNode::number);
    if (found == nodes.end()) continue;
    const bool has = std::ranges::any_of(
        found->cores, [&](int core) { return std::ranges::find(cores, core) != cores.end(); });
    if (has) nearest = std::min(nearest.value_or(distance), distance);
  }
  return nearest;
}

}  // namespace sluice
