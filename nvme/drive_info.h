// nvme/drive_info.h
//
// The drive below a file system, as the kernel tells it below /sys: what it is, how it is attached,
// and what holds it back. For the doctor.
//
// Nothing here fails: what the kernel doesn't say is not there. Threads: any.

#ifndef SLUICE_NVME_DRIVE_INFO_H_
#define SLUICE_NVME_DRIVE_INFO_H_

#include <optional>
#include <string>
#include <vector>

#include "core/cgroup.h"
#include "core/types.h"

namespace sluice {

struct DriveInfo {
  std::string name;   // "nvme0n1", of the whole drive
  std::string model;  // "SAMSUNG MZQL23T8HCLS-00A07"
  std::string serial;
  std::optional<Bytes> size;
  std::string bus;  // "NVMe over pcie, 16.0 GT/s PCIe x4"
  std::optional<int> node;
  // In words, with what to do about it: a link that is narrower or slower than both ends can, a
  // disk that turns, a limit of a cgroup.
  std::vector<std::string> held_back;
};

// Of the block device with this number, or of the one that it is a part of. Nothing if the kernel
// knows none, as for network file systems and those in RAM.
std::optional<DriveInfo> FindDrive(const FileReader& read, unsigned major, unsigned minor);
// Of the file system on which `path` lies.
std::optional<DriveInfo> FindDriveOf(const FileReader& read, const std::string& path);

// How far `node` is from the nearest of the nodes that have some of `cores`, as the firmware counts
// it: 10 is itself.
std::optional<int> NumaDistance(const FileReader& read, int node, const std::vector<int>& cores);

}  // namespace sluice

#endif  // SLUICE_NVME_DRIVE_INFO_H_
