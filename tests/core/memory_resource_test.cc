// What every memory resource promises, and what each adds.

#include "core/memory_resource.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>

#include "core/sim_memory.h"
#include "core/status.h"

namespace sluice {
namespace {

using testing::HasSubstr;

enum class Kind { kHugePages, kSimulated, kLimited };

class MemoryResourceTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam() == Kind::kHugePages) resource_ = std::make_unique<HugePageResource>();
    if (GetParam() == Kind::kSimulated) resource_ = std::make_unique<SimMemory>();
    if (GetParam() == Kind::kLimited)
      resource_ = std::make_unique<LimitingResource>(&upstream_, GiB(1));
  }

  SimMemory upstream_;
  std::unique_ptr<MemoryResource> resource_;
};

TEST_P(MemoryResourceTest, GivesZeroedAlignedMemoryOfExactlyTheSize) {
  for (const Bytes alignment : {Bytes(1), Bytes(64), KiB(4), MiB(2), MiB(4)}) {
    for (const Bytes size : {Bytes(1), Bytes(4095), Bytes(4097), MiB(2), MiB(2) + Bytes(1)}) {
      const absl::StatusOr<MemoryView> memory = resource_->Allocate(size, alignment);
      ASSERT_TRUE(memory.ok()) << memory.status();
      EXPECT_EQ(size.size(), memory->size());
      EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(memory->data()) % alignment.size());
      EXPECT_TRUE(std::ranges::all_of(*memory, [](std::byte b) { return b == std::byte{0}; }));
      std::ranges::fill(*memory, std::byte{0xA5});  // all of it can be written
      resource_->Deallocate(*memory);
    }
  }
}

TEST_P(MemoryResourceTest, RefusesWhatMakesNoSense) {
  for (const auto& [size, alignment] : {std::pair{Bytes(0), KiB(4)},
                                        {Bytes(-1), KiB(4)},
                                        {KiB(4), Bytes(0)},
                                        {KiB(4), Bytes(3)},
                                        {KiB(4), Bytes(-8)}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(resource_->Allocate(size, alignment).status()))
        << size.value() << " at " << alignment.value();
  }
}

TEST_P(MemoryResourceTest, SaysHowMuchCouldNotBeHad) {
  const absl::Status status = resource_->Allocate(GiB(1 << 17), KiB(4)).status();  // 128 TiB
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(Message(status)), HasSubstr("128 TiB"));
}

TEST_P(MemoryResourceTest, SaysWhatItIs) { EXPECT_FALSE(resource_->description().empty()); }

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  return std::array{"HugePages", "Simulated", "Limited"}[static_cast<size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(All, MemoryResourceTest,
                         testing::Values(Kind::kHugePages, Kind::kSimulated, Kind::kLimited),
                         &NameOf);

// The flags of the mapping that `address` lies in, as /proc/self/smaps has them ("rd wr ... dd").
std::string VmFlags(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
      inside = begin <= wanted && wanted < end;
    if (inside && line.starts_with("VmFlags:")) return line;
  }
  return "";
}

TEST(HugePageResourceTest, KeepsItsMemoryOutOfChildrenAndCoreDumps) {
  HugePageResource resource;
  const absl::StatusOr<MemoryView> memory = resource.Allocate(MiB(4), KiB(4));
  ASSERT_TRUE(memory.ok()) << memory.status();
  const std::string flags = VmFlags(memory->data());
  EXPECT_THAT(flags, HasSubstr(" dc"));  // MADV_DONTFORK
  EXPECT_THAT(flags, HasSubstr(" dd"));  // MADV_DONTDUMP
  const bool huge = resource.description().starts_with("huge pages");
  EXPECT_TRUE(!huge || flags.find(" hg") != std::string::npos) << flags;
  resource.Deallocate(*memory);
}

TEST(HugePageResourceTest, MemoryIsThereAtOnce) {
  HugePageResource resource;
  const absl::StatusOr<MemoryView> memory = resource.Allocate(MiB(8), KiB(4));
  ASSERT_TRUE(memory.ok()) << memory.status();
  std::vector<unsigned char> present(memory->size() / 4096);
  ASSERT_EQ(0, mincore(memory->data(), memory->size(), present.data()));
  EXPECT_TRUE(std::ranges::all_of(present, [](unsigned char p) { return (p & 1) != 0; }));
  resource.Deallocate(*memory);
}

TEST(LimitingResourceTest, NeverGivesOutMoreThanItsLimit) {
  SimMemory upstream;
  LimitingResource resource(&upstream, KiB(10));
  const absl::StatusOr<MemoryView> first = resource.Allocate(KiB(6), Bytes(64));
  ASSERT_TRUE(first.ok());
  const absl::Status refused = resource.Allocate(KiB(4) + Bytes(1), Bytes(64)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_EQ("4.1 KiB more would exceed the limit of 10 KiB: 6 KiB are in use", Message(refused));
  const absl::StatusOr<MemoryView> second = resource.Allocate(KiB(4), Bytes(64));
  ASSERT_TRUE(second.ok()) << "exactly the limit is allowed";
  EXPECT_EQ(KiB(10), resource.used());
  resource.Deallocate(*first);
  EXPECT_EQ(KiB(4), resource.used());
  EXPECT_EQ(KiB(10), resource.peak());
  resource.Deallocate(*second);
  EXPECT_FALSE(resource.Allocate(KiB(4), Bytes(3)).ok());
  EXPECT_EQ(Bytes(0), resource.used()) << "what upstream refused does not count";
}

}  // namespace
}  // namespace sluice
