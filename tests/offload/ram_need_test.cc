// What is needed of RAM against what there is, by arithmetic.

#include "offload/plan/ram_need.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MemoryLimits Limits(Bytes available) {
  return {.machine_total = GiB(64),
          .machine_available = available,
          .cgroup_limit = {},
          .cgroup_used = Bytes(0),
          .cgroup_path = ""};
}

TEST(RamNeedTest, TheSumOfAllThatIsRamCounts) {
  const Bytes most = RamForArenas(Limits(GiB(8)));
  EXPECT_LT(most, GiB(8));
  EXPECT_GT(most, GiB(8) - MiB(64));
  const Bytes half(most.value() / 2);
  const Bytes rest = most - half;
  for (const Bytes over : {Bytes(0), kRamMoves, kRamMoves + Bytes(1), GiB(1)}) {
    for (const RamNeed& need : {RamNeed{.pinned = most + over}, RamNeed{.hbm = most + over},
                                RamNeed{.files = most + over}, RamNeed{half + over, rest, {}},
                                RamNeed{half, rest + over, {}}, RamNeed{half, {}, rest + over}}) {
      const absl::Status status = CheckRam(need, Limits(GiB(8)));
      EXPECT_EQ(status.ok(), over <= kRamMoves) << status;
      if (status.ok()) continue;
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_THAT(std::string(Message(status)), HasSubstr(fmt::format("({} bytes)", most.value())));
      EXPECT_THAT(std::string(Message(status)),
                  HasSubstr("the machine has 8 GiB available of 64 GiB"));
    }
  }
}

TEST(RamNeedTest, SaysWhereTheLimitComesFromAndWhatWouldDo) {
  MemoryLimits limits = Limits(GiB(32));
  limits.cgroup_limit = GiB(8);
  limits.cgroup_used = GiB(2);
  limits.cgroup_path = "/sys/fs/cgroup/jobs/memory.max";
  const Bytes most = RamForArenas(limits);
  const std::string pinned(Message(CheckRam({.pinned = GiB(7), .hbm = GiB(1)}, limits)));
  EXPECT_THAT(pinned, HasSubstr("8 GiB of RAM are needed (7 GiB pinned, 1 GiB as HBM of the host"));
  EXPECT_THAT(pinned, HasSubstr("the cgroup allows 8 GiB and has used 2 GiB, says "
                                "/sys/fs/cgroup/jobs/memory.max"));
  EXPECT_THAT(pinned,
              HasSubstr(fmt::format("pinned budget that would do is {}", (most - GiB(1)).value())));
  EXPECT_TRUE(CheckRam({.pinned = most - GiB(1), .hbm = GiB(1)}, limits).ok());
  EXPECT_THAT(std::string(Message(CheckRam({.hbm = GiB(9)}, limits))),
              HasSubstr("lower the hbm budget first"));
  EXPECT_THAT(std::string(Message(CheckRam({.pinned = GiB(1), .files = GiB(9)}, limits))),
              HasSubstr("9 GiB of swap files on a file system in RAM"));
}

TEST(RamNeedTest, NothingAvailableIsNothing) {
  EXPECT_EQ(RamForArenas(Limits(Bytes(0))), Bytes(0));
  EXPECT_EQ(RamForArenas(Limits(MiB(3))), Bytes(0));
  EXPECT_FALSE(CheckRam({.pinned = Bytes(1)}, Limits(Bytes(0))).ok());
}

TEST(RamNeedTest, LimitsThatAreNotKnownRefuseNothingAndAreSaid) {
  const RamNeed need = {.pinned = GiB(1 << 20)};
  for (const absl::StatusCode code :
       {absl::StatusCode::kNotFound, absl::StatusCode::kPermissionDenied,
        absl::StatusCode::kUnavailable, absl::StatusCode::kInternal}) {
    std::string unchecked;
    EXPECT_TRUE(CheckRamIfKnown(need, absl::Status(code, "no /proc/meminfo"), &unchecked).ok());
    EXPECT_EQ(unchecked, "RAM was not checked: no /proc/meminfo");
  }
  std::string unchecked;
  EXPECT_TRUE(absl::IsResourceExhausted(CheckRamIfKnown(need, MemoryLimits{}, &unchecked)));
  EXPECT_EQ(unchecked, "");
}

}  // namespace
}  // namespace sluice
