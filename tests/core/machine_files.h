// tests/core/machine_files.h
//
// The files in which a kernel tells of a machine's NUMA nodes, and of what is near them.

#ifndef SLUICE_TESTS_CORE_MACHINE_FILES_H_
#define SLUICE_TESTS_CORE_MACHINE_FILES_H_

#include <filesystem>
#include <fstream>
#include <string>

#include "core/cgroup.h"
#include "fmt/format.h"
#include "tests/nvme/temp_dir.h"

namespace sluice::testing {

// A tree as the kernel has it below /sys: links into /sys/devices, the node at a parent.
class MachineFiles {
 public:
  void AddNode(int number, const std::string& cores, bool memory = true) {
    Write(fmt::format("/sys/devices/system/node/node{}/cpulist", number), cores + "\n");
    if (!memory) return;
    with_memory_ += fmt::format("{}{}", with_memory_.empty() ? "" : ",", number);
    Write("/sys/devices/system/node/has_memory", with_memory_ + "\n");
  }
  void AddGpu(const std::string& address, int node) {
    Write(fmt::format("/sys/bus/pci/devices/{}/numa_node", address), fmt::format("{}\n", node));
  }
  // Of a drive on the bus, or of a partition of it: one directory further down.
  void AddDrive(const std::string& number, int node, bool partition) {
    const std::string pci = "/sys/devices/pci0000:00/" + number;
    const std::string block =
        fmt::format("{}/nvme/nvme0/nvme0n1{}", pci, partition ? "/nvme0n1p1" : "");
    Write(pci + "/numa_node", fmt::format("{}\n", node));
    Write(block + "/dev", number);
    std::filesystem::create_directories(dir_.path() + "/sys/dev/block");
    std::filesystem::create_directory_symlink(dir_.path() + block,
                                              dir_.path() + "/sys/dev/block/" + number);
  }
  FileReader files() const { return FilesBelow(dir_.path()); }

 private:
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_.path() + path).parent_path());
    std::ofstream(dir_.path() + path) << text;
  }
  TempDir dir_;
  std::string with_memory_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_CORE_MACHINE_FILES_H_
