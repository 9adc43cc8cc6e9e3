#include "core/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/status.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::HasSubstr;

constexpr const char* kMeminfo =
    "MemTotal:       16777216 kB\n"
    "MemFree:          100000 kB\n"
    "MemAvailable:    8388608 kB\n";

// A directory that holds proc/ and sys/ as the test writes them.
class BudgetTest : public testing::Test {
 protected:
  void SetUp() override { Write("proc/meminfo", kMeminfo); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = dir_.path() + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  // A cgroup of version 2 or 1.
  void Group2(const std::string& path, const std::string& max, int64_t current, int64_t inactive) {
    const std::string directory = "sys/fs/cgroup" + path;
    Write(directory + "/memory.max", max + "\n");
    Write(directory + "/memory.current", std::to_string(current) + "\n");
    Write(directory + "/memory.stat",
          "anon 5\ninactive_file_not 1\ninactive_file " + std::to_string(inactive) + "\n");
  }
  void Group1(const std::string& path, int64_t limit, int64_t usage, int64_t inactive) {
    const std::string directory = "sys/fs/cgroup/memory" + path;
    Write(directory + "/memory.limit_in_bytes", std::to_string(limit) + "\n");
    Write(directory + "/memory.usage_in_bytes", std::to_string(usage) + "\n");
    Write(directory + "/memory.stat",
          "cache 9\ninactive_file 3\ntotal_inactive_file " + std::to_string(inactive) + "\n");
  }
  MemoryLimits Read() {
    const absl::StatusOr<MemoryLimits> limits = ReadMemoryLimits(dir_.path());
    EXPECT_TRUE(limits.ok()) << limits.status();
    return limits.value_or(MemoryLimits{});
  }

  const TempDir dir_;
};

TEST_F(BudgetTest, WithoutACgroupTheMachineIsTheLimit) {
  const MemoryLimits limits = Read();
  EXPECT_EQ(GiB(16), limits.machine_total);
  EXPECT_EQ(GiB(8), limits.machine_available);
  EXPECT_EQ(std::nullopt, limits.cgroup_limit);
  EXPECT_EQ(GiB(8), limits.available());
}

TEST_F(BudgetTest, Version2LimitsTheProcess) {
  Write("proc/self/cgroup", "0::/jobs/mine\n");
  Group2("/jobs/mine", std::to_string(GiB(4).value()), GiB(1).value(), MiB(256).value());
  const MemoryLimits limits = Read();
  EXPECT_EQ(GiB(4), limits.cgroup_limit);
  EXPECT_EQ(MiB(768), limits.cgroup_used) << "page cache that can be reclaimed is not in the way";
  EXPECT_EQ(MiB(4096 - 768), limits.available());
  EXPECT_EQ("/sys/fs/cgroup/jobs/mine/memory.max", limits.cgroup_path);
}

TEST_F(BudgetTest, MaxIsNoLimit) {
  Write("proc/self/cgroup", "0::/mine\n");
  Group2("/mine", "max", GiB(1).value(), 0);
  EXPECT_EQ(std::nullopt, Read().cgroup_limit);
}

TEST_F(BudgetTest, TheTightestLimitOnTheWayToTheRootCounts) {
  Write("proc/self/cgroup", "0::/outer/middle/inner\n");
  Group2("/outer/middle/inner", std::to_string(GiB(6).value()), 0, 0);
  Group2("/outer/middle", std::to_string(GiB(2).value()), GiB(1).value(), 0);
  Group2("/outer", std::to_string(GiB(3).value()), 0, 0);
  const MemoryLimits limits = Read();
  EXPECT_EQ(GiB(2), limits.cgroup_limit);
  EXPECT_EQ(GiB(1), limits.available());
}

TEST_F(BudgetTest, InsideAContainerTheRootHasTheLimit) {
  Write("proc/self/cgroup", "0::/\n");
  Group2("", std::to_string(GiB(5).value()), GiB(1).value(), 0);
  EXPECT_EQ(GiB(5), Read().cgroup_limit);
}

TEST_F(BudgetTest, Version1LimitsTheProcess) {
  Write("proc/self/cgroup", "12:cpu,cpuacct:/other\n7:memory:/docker/abc\n1:name=systemd:/x\n");
  Group1("/docker/abc", GiB(4).value(), GiB(3).value(), GiB(1).value());
  Group1("/other", MiB(1).value(), 0, 0);
  const MemoryLimits limits = Read();
  EXPECT_EQ(GiB(4), limits.cgroup_limit);
  EXPECT_EQ(GiB(2), limits.cgroup_used);
}

TEST_F(BudgetTest, ALimitAboveTheMachinesMemoryIsNone) {
  Write("proc/self/cgroup", "7:memory:/\n");
  Group1("", int64_t{0x7FFFFFFFFFFFF000}, GiB(3).value(), 0);  // what version 1 says for none
  EXPECT_EQ(std::nullopt, Read().cgroup_limit);
}

TEST_F(BudgetTest, MoreInUseThanAllowedLeavesNothing) {
  Write("proc/self/cgroup", "0::/\n");
  Group2("", std::to_string(GiB(1).value()), GiB(2).value(), 0);
  EXPECT_EQ(Bytes(0), Read().available());
}

TEST_F(BudgetTest, WhatTheMachineHasLeftIsALimitToo) {
  Write("proc/self/cgroup", "0::/\n");
  Group2("", std::to_string(GiB(12).value()), 0, 0);
  EXPECT_EQ(GiB(8), Read().available());
}

TEST_F(BudgetTest, AMissingFileIsNamed) {
  std::filesystem::remove(dir_.path() + "/proc/meminfo");
  const absl::Status status = ReadMemoryLimits(dir_.path()).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(Message(status)), HasSubstr(dir_.path() + "/proc/meminfo"));
}

TEST_F(BudgetTest, AFileWithoutTheNumbersIsNamed) {
  for (const char* text : {"", "MemTotal: 5 kB\n", "MemTotal: lots\nMemAvailable: 5 kB\n",
                           "MemTotal: 9000000000000000000 kB\nMemAvailable: 5 kB\n",
                           "MemTotal: -1 kB\nMemAvailable: 5 kB\n"}) {
    Write("proc/meminfo", text);
    const absl::Status status = ReadMemoryLimits(dir_.path()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
    EXPECT_THAT(std::string(Message(status)), HasSubstr("has no MemTotal or MemAvailable"));
  }
}

TEST_F(BudgetTest, WhatIsNoCgroupLineIsPassedOver) {
  for (const char* text :
       {"", "\n", "nonsense\n", "1:memory\n", ":::\n", "0::no/slash\n", "0:::\n"}) {
    Write("proc/self/cgroup", text);
    EXPECT_EQ(std::nullopt, Read().cgroup_limit) << text;
  }
}

TEST_F(BudgetTest, NumbersThatAreNoneAreNoLimits) {
  Write("proc/self/cgroup", "0::/\n");
  for (const char* max : {"", "-5", "99999999999999999999999", "max", "x"}) {
    Group2("", max, 0, 0);
    EXPECT_EQ(std::nullopt, Read().cgroup_limit) << max;
  }
}

TEST(ProcessTest, CountsItsOwnMemoryAndIo) {
  const absl::StatusOr<ProcessMemory> memory = ReadProcessMemory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_GT(memory->rss, KiB(100));
  EXPECT_GE(memory->rss_peak, memory->rss);
  const absl::StatusOr<ProcessIo> io = ReadProcessIo();
  ASSERT_TRUE(io.ok()) << io.status();
  EXPECT_GE(io->read, Bytes(0));
}

TEST(ProcessTest, ThisMachineHasLimits) {
  const absl::StatusOr<MemoryLimits> limits = ReadMemoryLimits();
  ASSERT_TRUE(limits.ok()) << limits.status();
  EXPECT_GT(limits->available(), Bytes(0));
  EXPECT_LE(limits->available(), limits->machine_total);
}

}  // namespace
}  // namespace sluice
