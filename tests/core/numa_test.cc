// What is decided, over trees as the kernel's; and what the kernel says of threads and memory that
// were bound, on the nodes that this machine has.

#include "core/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "core/memory_resource.h"
#include "fmt/format.h"
#include "tests/core/machine_files.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;

TEST(ParseNumberListTest, ReadsWhatTheKernelWrites) {
  EXPECT_THAT(ParseNumberList("0-3,8,10-11\n"), ElementsAre(0, 1, 2, 3, 8, 10, 11));
  EXPECT_THAT(ParseNumberList("7"), ElementsAre(7));
  EXPECT_THAT(ParseNumberList("5,1-2,2"), ElementsAre(1, 2, 5));
  for (const char* text : {"", "\n", "-1", "3-1", "a", "1,,2", "1-", "0-99999999", "1;2", "- 3",
                           "99999999999999999999"}) {
    EXPECT_THAT(ParseNumberList(text), IsEmpty()) << text;
  }
}

// Any list that this writes is read as what was written.
TEST(ParseNumberListTest, ReadsAnyListBack) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<int> numbers;
    std::string text;
    for (int n = 0; n < 200; ++n) {
      const int first = n;
      while (random() % 3 == 0 && n < 200) numbers.push_back(n++);
      if (n == first) continue;
      text += fmt::format("{}{}", text.empty() ? "" : ",", first);
      if (n - first > 1) text += fmt::format("-{}", n - 1);
    }
    ASSERT_EQ(numbers, ParseNumberList(text + "\n")) << text;
  }
}

TEST(NumaTest, ReadsNodesAndWhatIsNearThem) {
  testing::MachineFiles machine;
  machine.AddNode(0, "0-3,8-11");
  machine.AddNode(1, "4-7,12-15");
  machine.AddNode(2, "");              // memory alone, as of CXL
  machine.AddNode(3, "16-19", false);  // cores alone
  machine.AddGpu("0000:3b:00.0", 1);
  machine.AddGpu("0000:5e:00.0", -1);
  machine.AddDrive("259:0", 1, false);
  machine.AddDrive("259:1", 0, true);
  machine.AddDrive("259:2", -1, true);
  const std::vector<NumaNode> nodes = ReadNumaNodes(machine.files());
  ASSERT_EQ(3u, nodes.size());
  EXPECT_THAT(nodes[0].cores, ElementsAre(0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_EQ(1, nodes[1].number);
  EXPECT_THAT(nodes[2].cores, IsEmpty());
  EXPECT_THAT(NodeOfPciDevice(machine.files(), "0000:3B:00.0"), Optional(1));
  EXPECT_EQ(std::nullopt, NodeOfPciDevice(machine.files(), "0000:5e:00.0"));
  EXPECT_EQ(std::nullopt, NodeOfPciDevice(machine.files(), "0000:01:00.0"));
  EXPECT_EQ(std::nullopt, NodeOfPciDevice(machine.files(), ""));
  EXPECT_THAT(NodeOfBlockDevice(machine.files(), 259, 0), Optional(1));
  EXPECT_THAT(NodeOfBlockDevice(machine.files(), 259, 1), Optional(0));
  EXPECT_EQ(std::nullopt, NodeOfBlockDevice(machine.files(), 259, 2));
  EXPECT_EQ(std::nullopt, NodeOfBlockDevice(machine.files(), 0, 33));
}

TEST(NumaTest, AKernelThatSaysNothingHasNoNodes) {
  const TempDir empty;
  EXPECT_THAT(ReadNumaNodes(FilesBelow(empty.path())), IsEmpty());
}

constexpr int kNowhere = -1;
struct Wish {
  const char* why;
  std::vector<int> allowed;
  int gpu;
  std::vector<int> drives;
  int node;
  std::vector<int> cores;
  const char* words;
};

TEST(ChooseNumaBindingTest, TheGpuThenTheDrivesThenTheCoresSay) {
  const std::vector<NumaNode> nodes = {{0, {0, 1, 2, 3}}, {1, {4, 5, 6, 7}}, {2, {}}};
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7};
  const Wish wishes[] = {
      {"GPU", all, 1, {0}, 1, {4, 5, 6, 7}, "node 1, the GPU's"},
      {"GPU that is unknown", all, kNowhere, {0, 0}, 0, {0, 1, 2, 3}, "node 0, the drives'"},
      {"drives that differ", all, kNowhere, {0, 1}, kNowhere, all, "nothing is bound"},
      {"a drive that is unknown", all, kNowhere, {1, kNowhere}, kNowhere, all, "nothing is bound"},
      {"nobody", all, kNowhere, {}, kNowhere, all, "nothing is bound"},
      {"cores", {4, 6}, kNowhere, {}, 1, {4, 6}, "all allowed cores"},
      {"some of the GPU's cores", {0, 1, 5}, 1, {}, 1, {5}, "to its 1 cores"},
      {"none of the GPU's cores", {0, 1}, 1, {}, 0, {0, 1}, "node 1, the GPU's, has no"},
      {"none, and cores of two", {0, 5}, 2, {}, kNowhere, {0, 5}, "node 2, the GPU's, has no"},
      {"a node that is not there", all, 9, {}, kNowhere, all, "node 9, the GPU's, has no"},
      {"no cores known", {}, kNowhere, {}, kNowhere, {}, "nothing is bound"},
  };
  for (const Wish& wish : wishes) {
    SCOPED_TRACE(wish.why);
    const auto known = [](int n) { return n == kNowhere ? std::nullopt : std::optional<int>(n); };
    NumaWishes given{.allowed = wish.allowed, .gpu = known(wish.gpu)};
    for (const int drive : wish.drives) given.drives.push_back(known(drive));
    const NumaBinding binding = ChooseNumaBinding(nodes, given);
    EXPECT_EQ(known(wish.node), binding.node);
    EXPECT_EQ(wish.cores, binding.cores);
    EXPECT_THAT(binding.reason, HasSubstr(wish.words));
  }
}

TEST(ChooseNumaBindingTest, OnOneNodeNothingIsBound) {
  for (const std::vector<NumaNode>& nodes : {std::vector<NumaNode>{}, {{0, {0, 1}}}}) {
    const NumaBinding binding =
        ChooseNumaBinding(nodes, {.allowed = {0, 1}, .gpu = 0, .drives = {0}});
    EXPECT_EQ(std::nullopt, binding.node);
    EXPECT_THAT(binding.cores, ElementsAre(0, 1));
    EXPECT_EQ("1 NUMA node: nothing to bind", binding.reason);
  }
}

// What the kernel says of the calling thread: a policy, and its first node.
std::pair<int, int> Policy() {
  int policy = 0;
  unsigned long nodes[16] = {};
  if (syscall(SYS_get_mempolicy, &policy, nodes, 1024ul, nullptr, 0) != 0) return {-1, -1};
  return {policy, nodes[0] == 0 ? -1 : __builtin_ctzl(nodes[0])};
}

TEST(ScopedNumaBindingTest, ThreadsAndMemoryStayWhereTheyWereMade) {
  const auto before = Policy();
  if (before.first < 0) GTEST_SKIP() << "this kernel knows no memory policies";
  const std::vector<int> all = CoresOfThread();
  ASSERT_FALSE(all.empty());
  HugePageResource resource;
  for (const NumaNode& node : ReadNumaNodes(FilesBelow(""))) {
    const NumaBinding wanted =
        ChooseNumaBinding({node, {node.number + 1000, {}}}, {.allowed = all, .gpu = node.number});
    if (!wanted.node) continue;  // none of its cores is allowed
    std::vector<int> of_thread;
    std::optional<MemoryView> memory;
    {
      const ScopedNumaBinding bound(wanted);
      if (!bound.refused().empty()) GTEST_SKIP() << bound.refused();
      EXPECT_EQ(wanted.cores, CoresOfThread());
      EXPECT_EQ(std::pair(int{MPOL_PREFERRED}, node.number), Policy());
      std::thread([&of_thread] { of_thread = CoresOfThread(); }).join();
      memory = *resource.Allocate(MiB(5), MiB(2));
    }
    EXPECT_EQ(wanted.cores, of_thread);
    EXPECT_THAT(ShareOnNode(*memory, node.number), Optional(1.0));
    EXPECT_THAT(ShareOnNode(*memory, node.number + 1), Optional(0.0));
    EXPECT_EQ(all, CoresOfThread());
    EXPECT_EQ(before, Policy());
    resource.Deallocate(*memory);
  }
}

TEST(ScopedNumaBindingTest, ThreadsComeBackToCoresThatTheirStarterHasLeft) {
  const std::vector<int> all = CoresOfThread();
  if (all.size() < 2) GTEST_SKIP() << "one core";
  std::thread([&all] {
    const NumaBinding one{.cores = {all.back()}};
    const ScopedNumaBinding narrow(one);
    EXPECT_EQ(one.cores, CoresOfThread());
    {
      const ScopedNumaBinding wide(NumaBinding{.cores = all});
      EXPECT_EQ(all, CoresOfThread());
    }
    EXPECT_EQ(one.cores, CoresOfThread());
  }).join();
  EXPECT_EQ(all, CoresOfThread());
}

TEST(ScopedNumaBindingTest, WhatTheKernelRefusesIsSaid) {
  const std::vector<int> before = CoresOfThread();
  const ScopedNumaBinding bound(NumaBinding{.node = 1000, .cores = {16000}});
  EXPECT_THAT(bound.refused(), HasSubstr("binding threads"));
  EXPECT_THAT(bound.refused(), HasSubstr("setting the memory policy"));
  EXPECT_EQ(before, CoresOfThread());
}

}  // namespace
}  // namespace sluice
