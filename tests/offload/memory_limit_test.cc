// Budgets above what a memory cgroup allows, for real: refused with what would do, and what would
// do does, instead of a process that the kernel ends.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/factory.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

constexpr Bytes kLimit = MiB(192);
enum Verdict { kRight = 0, kNotJoined = 77, kNotRefused, kOtherWords, kDoesNotDo };

// A cgroup of the test's own, of whichever version is here.
class MemoryLimitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* mount : {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"}) {
      const bool v1 = std::string(mount).ends_with("memory");
      if (!std::filesystem::exists(std::string(mount) +
                                   (v1 ? "/memory.limit_in_bytes" : "/cgroup.controllers")))
        continue;
      group_ = std::string(mount) + "/sluice-test-" + std::to_string(getpid());
      std::error_code error;
      if (!std::filesystem::create_directory(group_, error)) break;
      made_ = true;
      if (Write(v1 ? "/memory.limit_in_bytes" : "/memory.max", std::to_string(kLimit.value())))
        return;
      break;
    }
    GTEST_SKIP() << "no memory cgroup can be made here";
  }
  void TearDown() override { EXPECT_TRUE(!made_ || rmdir(group_.c_str()) == 0); }

  bool Write(const std::string& file, const std::string& text) const {
    std::ofstream out(group_ + file);
    out << text << std::flush;
    return out.good();
  }

  // 24M parameters: 96 MiB each of parameters, gradients and moments.
  static absl::Status Create(const RuntimeConfig& config) {
    ModelSpec spec;
    for (uint32_t u = 0; u < 6; ++u) {
      spec.units.push_back({.name = "unit"});
      spec.tensors.push_back({.name = "tensor", .unit = UnitIndex(u), .elements = 4 << 20});
    }
    return MakeRuntime(spec, config).status();
  }

  template <typename Body>
  void RunInGroup(Body body) {
    const pid_t child = fork();
    if (child == 0) {
      if (!Write("/cgroup.procs", "0")) _exit(kNotJoined);
      _exit(body());
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) == kNotJoined) GTEST_SKIP() << "the cgroup can't be joined";
    EXPECT_EQ(WEXITSTATUS(status), kRight);
  }

  static RuntimeConfig Config(const std::string& path) {
    RuntimeConfig config;
    config.device = DeviceKind::kHost;
    config.workers = 2;
    config.nvme_paths = {path};
    config.budgets = {MiB(32), MiB(500), GiB(4)};
    config.types.grad = FloatType::kBf16;
    return config;
  }

  std::string group_;
  bool made_ = false;
};

TEST_F(MemoryLimitTest, WhatDoesNotFitIsRefusedWithWhatWould) {
  TempDir dir;
  RunInGroup([&]() -> int {
    RuntimeConfig config = Config(dir.path());
    const absl::Status refused = Create(config);
    if (refused.ok()) return kNotRefused;
    const std::string words(Message(refused));
    const std::string before = "the largest pinned budget that would do is ";
    const size_t at = words.find(before);
    if (words.find("the cgroup allows 192 MiB") == std::string::npos || at == std::string::npos)
      return kOtherWords;
    config.budgets.pinned = Bytes(std::stoll(words.substr(at + before.size())));
    const absl::Status made = Create(config);
    if (!made.ok()) fmt::print(stderr, "{}\n", Message(made));
    return made.ok() ? kRight : kDoesNotDo;
  });
}

TEST_F(MemoryLimitTest, SwapFilesInRamCountAsRam) {
  if (access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no /dev/shm";
  RunInGroup([&]() -> int {
    RuntimeConfig config = Config("/dev/shm");
    config.budgets.pinned = MiB(100);
    const absl::Status refused = Create(config);
    if (refused.ok()) return kNotRefused;
    return Message(refused).find("swap files on a file system in RAM") != std::string_view::npos
               ? kRight
               : kOtherWords;
  });
}

}  // namespace
}  // namespace sluice
