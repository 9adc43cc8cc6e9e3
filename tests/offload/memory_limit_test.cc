// Budgets above what a memory cgroup allows, for real: refused with what would do, and what would
// do does, instead of a process that the kernel ends.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/factory.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using testing::LinkRanks;
using testing::OnRanks;

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
      limit_ = v1 ? "/memory.limit_in_bytes" : "/memory.max";
      if (Write(limit_, std::to_string(kLimit.value()))) return;
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

  // `ranks` runtimes that share all of a model of 1M parameters a unit. Returns how each was made;
  // all are there until the last was.
  static std::vector<absl::Status> CreateRanks(uint32_t ranks, int units, RuntimeConfig config) {
    ModelSpec spec;
    for (int u = 0; u < units; ++u) {
      spec.units.push_back({.name = "unit"});
      spec.tensors.push_back({.name = "tensor", .unit = UnitIndex(u), .elements = 1 << 20});
    }
    config.zero_stage = 3;
    std::vector<RankLinks> links = LinkRanks(ranks);
    std::vector<absl::StatusOr<std::unique_ptr<OffloadRuntime>>> made;
    for (uint32_t r = 0; r < ranks; ++r) made.emplace_back(absl::UnknownError("not made"));
    OnRanks(ranks, [&](uint32_t rank) {
      RuntimeConfig own = config;
      own.sharding = {.rank = Rank(rank), .ranks = ranks, .states = true, .params = true};
      made[rank] = MakeRuntime(spec, own, std::move(links[rank]));
    });
    std::vector<absl::Status> statuses;
    for (const auto& one : made) statuses.push_back(one.status());
    OnRanks(ranks, [&](uint32_t rank) { made[rank] = absl::UnknownError("gone"); });
    return statuses;
  }

  // Of runtimes that are to be made.
  static Verdict VerdictOf(const std::vector<absl::Status>& made) {
    for (const absl::Status& status : made) {
      if (status.ok()) continue;
      fmt::print(stderr, "{}\n", Message(status));
      return kDoesNotDo;
    }
    return kRight;
  }

  std::string group_;
  std::string limit_;  // its file
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

// Each alone would take more than half of what there is.
TEST_F(MemoryLimitTest, RanksOfAHostShareItWhereNobodySaysHowMuch) {
  ASSERT_TRUE(Write(limit_, std::to_string(MiB(1152).value())));
  TempDir dir;
  RunInGroup([&]() -> int {
    RuntimeConfig config = Config(dir.path());
    config.budgets = {Bytes(-1), Bytes(-1), Bytes(-1)};
    return VerdictOf(CreateRanks(3, 100, config));
  });
}

// As much as each alone could have, and together more than there is: all are told what each could
// have, and can.
TEST_F(MemoryLimitTest, RanksOfAHostAreRefusedTogether) {
  TempDir dir;
  RunInGroup([&]() -> int {
    RuntimeConfig config = Config(dir.path());
    config.budgets = {MiB(16), MiB(80), GiB(4)};
    if (VerdictOf(CreateRanks(1, 24, config)) != kRight) return kDoesNotDo;
    int64_t least = config.budgets.pinned.value();
    for (const absl::Status& status : CreateRanks(3, 24, config)) {
      if (status.ok()) return kNotRefused;
      const std::string words(Message(status));
      const std::string before = "the largest pinned budget that would do is ";
      const size_t at = words.find(before);
      if (words.find("of 3 ranks of this host") == std::string::npos || at == std::string::npos) {
        fmt::print(stderr, "{}\n", words);
        return kOtherWords;
      }
      least = std::min<int64_t>(least, std::stoll(words.substr(at + before.size())));
    }
    config.budgets.pinned = Bytes(least);
    return VerdictOf(CreateRanks(3, 24, config));
  });
}

// One of several that can't begin: the others hear which, and why, whenever it fails.
TEST(RanksThatCantBeginTest, OthersHearWhichAndWhy) {
  const TempDir dir;
  for (const uint32_t ranks : {2u, 4u}) {
    for (const bool early : {true, false}) {
      std::vector<RankLinks> links = LinkRanks(ranks);
      std::vector<absl::Status> statuses(ranks);
      OnRanks(ranks, [&](uint32_t rank) {
        RuntimeConfig config = testing::InMemory(ranks, 3).config;
        config.sharding = {.rank = Rank(rank), .ranks = ranks, .states = true, .params = true};
        if (rank == 1) {
          if (early) config.budgets.pinned = Bytes(1);
          config.nvme_paths = {dir.path()};
          config.nvme_rates = {DriveRate(), DriveRate()};  // looked at later
        }
        statuses[rank] = MakeRuntime(testing::OddModel(), config, std::move(links[rank])).status();
      });
      for (uint32_t r = 0; r < ranks; ++r) {
        EXPECT_FALSE(statuses[r].ok()) << r;
        if (r == 1) continue;
        EXPECT_NE(Message(statuses[r]).find("rank 1 can't begin"), std::string_view::npos)
            << statuses[r];
        EXPECT_NE(Message(statuses[r]).find(Message(statuses[1])), std::string_view::npos)
            << statuses[r];
      }
    }
  }
}

}  // namespace
}  // namespace sluice
