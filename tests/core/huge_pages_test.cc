#include "core/huge_pages.h"

#include <gtest/gtest.h>

#include <sstream>

#include "core/memory_resource.h"

namespace sluice {
namespace {

ConstMemoryView At(uintptr_t begin, size_t size) {
  return {reinterpret_cast<const std::byte*>(begin), size};
}

constexpr char kMaps[] =
    "10000000-10400000 rw-p 00000000 00:00 0 \n"
    "Rss:                4096 kB\n"
    "AnonHugePages:      2048 kB\n"
    "ShmemPmdMapped:        0 kB\n"
    "VmFlags: rd wr mr mw me ac hg\n"
    "10400000-10800000 rw-p 00000000 00:00 0 [anon: name]\n"
    "AnonHugePages:      4096 kB\n"
    "20000000-20001000 r-xp 00000000 fe:00 99 /usr/lib/a b-c.so\n"
    "AnonHugePages:         0 kB\n";

TEST(HugePagesTest, CountsWhatLiesInTheMemory) {
  const auto count = [](ConstMemoryView memory) {
    std::istringstream smaps(kMaps);
    return HugePageBytes(memory, smaps);
  };
  EXPECT_EQ(count(At(0x10000000, 0x400000)), MiB(2));
  EXPECT_EQ(count(At(0x10000000, 0x800000)), MiB(6));
  EXPECT_EQ(count(At(0x10300000, 0x200000)), MiB(2)) << "a megabyte of each, at most";
  EXPECT_EQ(count(At(0x10400000, 0x1000)), KiB(4));
  EXPECT_EQ(count(At(0x20000000, 0x1000)), Bytes(0));
  EXPECT_EQ(count(At(0x30000000, 0x1000)), std::nullopt) << "it is not mapped";
  EXPECT_EQ(count({}), Bytes(0));
}

TEST(HugePagesTest, AKernelThatSaysNothingIsNotZero) {
  std::istringstream smaps("10000000-10400000 rw-p 00000000 00:00 0 \nRss: 4096 kB\n");
  EXPECT_EQ(HugePageBytes(At(0x10000000, 0x1000), smaps), std::nullopt);
}

TEST(HugePagesTest, OfThisProcess) {
  HugePageResource resource;
  const absl::StatusOr<MemoryView> memory = resource.Allocate(MiB(8), KiB(4));
  ASSERT_TRUE(memory.ok());
  const std::optional<Bytes> some = HugePageBytes(*memory);
  if (!some) GTEST_SKIP() << "no /proc/self/smaps";
  EXPECT_LE(*some, MiB(8));
  resource.Deallocate(*memory);
}

}  // namespace
}  // namespace sluice
