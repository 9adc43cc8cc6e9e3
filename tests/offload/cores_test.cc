// Which cores a runtime has: as many workers as its plan says, on the node that it is bound to; and
// no thread of its own anywhere else.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/numa.h"
#include "fmt/format.h"
#include "offload/run/factory.h"
#include "tests/core/machine_files.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/training.h"

namespace sluice {
namespace {

using testing::MachineFiles;

AllowedCores Allowed(int first, int last, int count) {
  AllowedCores allowed{.count = count};
  for (int core = first; core <= last; ++core) allowed.cores.push_back(core);
  return allowed;
}

std::string DriveOf(const std::string& path) {
  struct stat status {};
  SLUICE_CHECK(stat(path.c_str(), &status) == 0);
  return fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev));
}

TEST(PlanCoresTest, WorkersAreOneLessThanTheCoresOfTheNode) {
  const TempDir drive;
  const DeviceChoice host{.kind = DeviceKind::kHost};
  const DeviceChoice gpu{.kind = DeviceKind::kCuda, .pci_address = "0000:3b:00.0"};
  MachineFiles machine;
  machine.AddNode(0, "0-5");
  machine.AddNode(1, "6-15");
  machine.AddGpu("0000:3b:00.0", 1);
  machine.AddDrive(DriveOf(drive.path()), 0, false);
  const FileReader files = machine.files();
  RuntimeConfig config;
  // Neither says where: all cores.
  EXPECT_EQ(15, PlanCores(config, host, Allowed(0, 15, 16), files).workers);
  EXPECT_EQ(std::nullopt, PlanCores(config, host, Allowed(0, 15, 16), files).binding.node);
  // The GPU, before the drive; the drive; the cores that are allowed.
  EXPECT_EQ(9, PlanCores(config, gpu, Allowed(0, 15, 16), files).workers);
  EXPECT_EQ(3, PlanCores(config, gpu, Allowed(0, 9, 10), files).workers);
  EXPECT_EQ(4, PlanCores(config, host, Allowed(7, 11, 5), files).workers);
  config.nvme_paths = {drive.path()};
  EXPECT_EQ(5, PlanCores(config, host, Allowed(0, 15, 16), files).workers);
  EXPECT_EQ(9, PlanCores(config, gpu, Allowed(0, 15, 16), files).workers);
  EXPECT_EQ(1, PlanCores(config, host, Allowed(5, 15, 11), files).workers) << "a node's only core";
  // A quota, and what is asked for.
  EXPECT_EQ(2, PlanCores(config, host, Allowed(0, 15, 3), files).workers);
  // Several ranks: of 16 cores, by affinity; of a quota of 8 that is this one's; of one of 3 for
  // two.
  config.nvme_paths.clear();
  config.share = {.local_ranks = 4, .cores = 1.0 / 4};
  EXPECT_EQ(3, PlanCores(config, host, Allowed(0, 15, 16), files).workers);
  EXPECT_EQ(3, PlanCores(config, host, Allowed(0, 15, 8), files).workers);
  config.share.cores = 1;
  EXPECT_EQ(7, PlanCores(config, host, Allowed(0, 15, 8), files).workers);
  config.share.quota = 1.0 / 2;
  EXPECT_EQ(1, PlanCores(config, host, Allowed(0, 15, 3), files).workers);
  config.share = {.local_ranks = 20, .cores = 1.0 / 20};
  EXPECT_EQ(1, PlanCores(config, host, Allowed(0, 15, 16), files).workers);
  config.workers = 12;
  EXPECT_EQ(12, PlanCores(config, host, Allowed(0, 15, 16), files).workers);
}

// Threads of this process: number and name, and the cores that each may run on.
std::set<std::string> Threads() {
  std::set<std::string> threads;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
    threads.insert(task.path().filename());
  return threads;
}
std::string Line(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return line.substr(key.size());
  }
  return "";
}

class ThreadsOfARuntimeTest : public ::testing::TestWithParam<IoEngineKind> {};

TEST_P(ThreadsOfARuntimeTest, RunWhereItsMakerMay) {
  const std::vector<int> all = CoresOfThread();
  const TempDir dir;
  RuntimeConfig config;
  config.engine = GetParam();
  config.workers = 3;
  config.chunk_elements = 2 * kCellElements;
  config.nvme_paths = {dir.path()};
  config.budgets = {MiB(64), MiB(1), MiB(64)};
  config.placement.state_buffers = 2;
  for (const int core : all) {
    const std::set<std::string> before = Threads();
    absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = absl::UnknownError("not made");
    std::thread([&] {
      const ScopedNumaBinding bound(NumaBinding{.cores = {core}});
      runtime = MakeRuntime(testing::OddModel(), config);
    }).join();
    // Threads are to be had anywhere; the kernel may have no engine of another kind.
    if (GetParam() != IoEngineKind::kThreads && absl::IsUnavailable(runtime.status()))
      GTEST_SKIP() << runtime.status();
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    int found = 0;
    for (const std::string& thread : Threads()) {
      if (before.contains(thread)) continue;
      const std::string status = "/proc/self/task/" + thread + "/status";
      if (Line(status, "Name:") == "") continue;  // it has ended
      EXPECT_EQ(std::to_string(core), Line(status, "Cpus_allowed_list:\t"))
          << Line(status, "Name:");
      ++found;
    }
    // Workers, streams, control, perhaps those of the engine, and who looks after OpenMP's.
    EXPECT_GE(found, 3 + 3 + 1);
  }
}

constexpr std::array kEngineNames = {"Auto", "IoUring", "Libaio", "Threads"};

INSTANTIATE_TEST_SUITE_P(Engines, ThreadsOfARuntimeTest,
                         ::testing::Values(IoEngineKind::kThreads, IoEngineKind::kIoUring,
                                           IoEngineKind::kLibaio),
                         [](const ::testing::TestParamInfo<IoEngineKind>& info) {
                           return std::string(kEngineNames[static_cast<size_t>(info.param)]);
                         });

}  // namespace
}  // namespace sluice
