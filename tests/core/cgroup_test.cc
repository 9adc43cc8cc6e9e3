// What the cgroups of a process allow, over trees of files that a test makes up.

#include "core/cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core/budget.h"
#include "fmt/format.h"

namespace sluice {
namespace {

using testing::ElementsAre;

constexpr int64_t kGiB = int64_t{1} << 30;

class Tree {
 public:
  std::string& operator[](const std::string& path) { return files_[path]; }
  FileReader reader() const {
    return [this](const std::string& path) -> absl::StatusOr<std::string> {
      const auto it = files_.find(path);
      if (it == files_.end()) return absl::NotFoundError(path);
      return it->second;
    };
  }
  std::vector<std::string> Levels(const char* controller) const {
    std::vector<std::string> directories;
    for (const CgroupLevel& level : CgroupLevels(reader(), controller))
      directories.push_back(level.directory);
    return directories;
  }

 private:
  std::map<std::string, std::string> files_;
};

TEST(CgroupTest, EveryLevelUpToTheVisibleRoot) {
  Tree tree;
  tree["/proc/self/cgroup"] = "0::/a/b\n";
  EXPECT_THAT(tree.Levels("memory"),
              ElementsAre("/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup",
                          "/sys/fs/cgroup/unified/a/b", "/sys/fs/cgroup/unified/a",
                          "/sys/fs/cgroup/unified"));
  tree["/proc/self/mountinfo"] = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
  EXPECT_THAT(tree.Levels("memory"),
              ElementsAre("/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"));
}

TEST(CgroupTest, WhatIsMountedOfAContainersCgroupIsItsRoot) {
  Tree tree;
  tree["/proc/self/cgroup"] = "0::/docker/abc/inner\n";
  tree["/proc/self/mountinfo"] =
      "30 23 0:26 /docker/abc /sys/fs/cgroup ro shared:9 - cgroup2 cgroup rw,nsdelegate\n";
  EXPECT_THAT(tree.Levels("cpu"), ElementsAre("/sys/fs/cgroup/inner", "/sys/fs/cgroup"));
}

TEST(CgroupTest, Version1HasAHierarchyPerController) {
  Tree tree;
  tree["/proc/self/cgroup"] = "4:memory:/m\n3:cpu,cpuacct:/c\n2:cpuset:/s\n0::/u\n";
  tree["/proc/self/mountinfo"] =
      "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
      "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
      "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
      "34 31 0:31 / /cg/memory rw - cgroup cgroup rw,memory\n";
  EXPECT_THAT(tree.Levels("memory"),
              ElementsAre("/cg/memory/m", "/cg/memory", "/sys/fs/cgroup/u", "/sys/fs/cgroup",
                          "/sys/fs/cgroup/unified/u", "/sys/fs/cgroup/unified"));
  EXPECT_EQ(tree.Levels("cpu")[0], "/sys/fs/cgroup/cpu,cpuacct/c");
}

TEST(CgroupTest, WhatIsNoMountOrCgroupLineIsPassedOver) {
  for (const char* text : {"", "\n", " - ", "1 2 3 4 - cgroup2 x y\n", "a b c / /p - cgroup2\n"}) {
    Tree tree;
    tree["/proc/self/cgroup"] = "0::/a\n";
    tree["/proc/self/mountinfo"] = text;
    EXPECT_GE(tree.Levels("memory").size(), 2u) << text;
  }
}

// One level as a test makes it up.
struct Level {
  int64_t max = -1;  // -1: none
  int64_t high = -1;
  int64_t used = 0;
  int64_t inactive = 0;
  int64_t active = 0;
  int64_t slab = 0;
};

std::string Number(int64_t value) { return value < 0 ? "max\n" : fmt::format("{}\n", value); }

void Write(Tree* tree, int version, const std::string& directory, const Level& level) {
  Tree& t = *tree;
  if (version == 2) {
    t[directory + "/memory.max"] = Number(level.max);
    t[directory + "/memory.high"] = Number(level.high);
    t[directory + "/memory.current"] = Number(level.used);
    t[directory + "/memory.stat"] =
        fmt::format("anon 7\ninactive_file {}\nactive_file {}\nslab_reclaimable {}\n",
                    level.inactive, level.active, level.slab);
    return;
  }
  t[directory + "/memory.limit_in_bytes"] =
      Number(level.max < 0 ? int64_t{0x7FFFFFFFFFFFF000} : level.max);
  t[directory + "/memory.usage_in_bytes"] = Number(level.used);
  t[directory + "/memory.stat"] =
      fmt::format("inactive_file 1\nactive_file 1\ntotal_inactive_file {}\ntotal_active_file {}\n",
                  level.inactive, level.active);
}

// What may still be taken below `levels`, by the definition.
int64_t Headroom(int version, const std::vector<Level>& levels, int64_t available) {
  int64_t least = available;
  for (const Level& level : levels) {
    const int64_t given_up =
        level.inactive + level.active + (version == 2 ? level.slab : int64_t{0});
    const int64_t used = std::max<int64_t>(0, level.used - given_up);
    for (const int64_t limit : {level.max, version == 2 ? level.high : int64_t{-1}})
      if (limit >= 0) least = std::min(least, std::max<int64_t>(0, limit - used));
  }
  return least;
}

int64_t Available(int version, const std::vector<Level>& levels) {
  Tree tree;
  tree["/proc/meminfo"] =
      fmt::format("MemTotal: {} kB\nMemAvailable: {} kB\n", 512 << 20, 256 << 20);
  std::string path;
  const std::string mount = version == 2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
  for (const Level& level : levels) {  // the outermost first
    Write(&tree, version, mount + path, level);
    path += "/x";
  }
  path.resize(path.size() - 2);
  tree["/proc/self/cgroup"] =
      (version == 2 ? "0::" : "4:memory:") + (path.empty() ? "/" : path) + "\n";
  const auto limits = MemoryLimitsOf(tree.reader());
  EXPECT_TRUE(limits.ok()) << limits.status();
  return limits.ok() ? limits->available().value() : -1;
}

TEST(CgroupMemoryTest, LimitLessUseCountsAtEveryLevel) {
  const auto gib = [](double n) { return static_cast<int64_t>(n * double{kGiB}); };
  struct Case {
    const char* what;
    std::vector<Level> levels;  // the outermost first
    double left_v2, left_v1;
  };
  const Case cases[] = {
      {"no limit", {{}, {}}, 256, 256},
      {"a full parent above a child with room",
       {{.max = gib(64), .used = gib(60)}, {.max = gib(32), .used = gib(1)}},
       4,
       4},
      {"a full child below a parent with room",
       {{.max = gib(64), .used = gib(10)}, {.max = gib(32), .used = gib(31)}},
       1,
       1},
      {"a full grandparent",
       {{.max = gib(100), .used = gib(98)}, {}, {.max = gib(8), .used = gib(1)}},
       2,
       2},
      {"file pages are given up",
       {{.max = gib(64), .used = gib(60), .inactive = gib(20), .active = gib(30)},
        {.max = gib(70), .used = gib(1)}},
       54,
       54},
      {"memory.high slows down what passes it",
       {{.max = gib(64), .high = gib(40), .used = gib(30)}},
       10,
       34},
      {"over its limit", {{.max = gib(4), .used = gib(5)}}, 0, 0},
      {"statistics that are ahead of the use",
       {{.max = gib(4), .used = gib(1), .active = gib(3)}},
       4,
       4},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(Available(2, c.levels), gib(c.left_v2)) << c.what;
    EXPECT_EQ(Available(1, c.levels), gib(c.left_v1)) << c.what;
  }
}

TEST(CgroupMemoryTest, AnyTreeByTheDefinition) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    std::vector<Level> levels(1 + random() % 5);
    for (Level& level : levels) {
      if (random() % 3 > 0) level.max = static_cast<int64_t>(random() % 100) * kGiB;
      if (random() % 4 == 0) level.high = static_cast<int64_t>(random() % 100) * kGiB;
      level.used = static_cast<int64_t>(random() % 100) * kGiB;
      level.inactive = static_cast<int64_t>(random() % 20) * kGiB;
      level.active = static_cast<int64_t>(random() % 20) * kGiB;
      level.slab = static_cast<int64_t>(random() % 5) * kGiB;
    }
    for (const int version : {1, 2})
      ASSERT_EQ(Available(version, levels), Headroom(version, levels, 256 * kGiB));
  }
}

TEST(CgroupMemoryTest, Version1sHiddenParentsLimitToo) {
  Tree tree;
  tree["/proc/meminfo"] = "MemTotal: 16777216 kB\nMemAvailable: 16777216 kB\n";
  tree["/proc/self/cgroup"] = "4:memory:/a\n";
  Write(&tree, 1, "/sys/fs/cgroup/memory", {.used = kGiB});
  tree["/sys/fs/cgroup/memory/memory.stat"] +=
      fmt::format("hierarchical_memory_limit {}\n", 5 * kGiB);
  const auto limits = MemoryLimitsOf(tree.reader());
  ASSERT_TRUE(limits.ok()) << limits.status();
  EXPECT_EQ(limits->available(), GiB(4));
  EXPECT_EQ(limits->cgroup_path, "/sys/fs/cgroup/memory/memory.stat");
}

TEST(CgroupMemoryTest, TheReasonNamesTheLimitThatCounts) {
  Tree tree;
  tree["/proc/meminfo"] = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n";
  tree["/proc/self/cgroup"] = "0::/a\n";
  Write(&tree, 2, "/sys/fs/cgroup/a", {.max = 10 * kGiB, .used = kGiB});
  EXPECT_EQ(MemoryLimitsOf(tree.reader())->reason(), "the machine has 8 GiB available of 16 GiB");
  Write(&tree, 2, "/sys/fs/cgroup", {.max = 12 * kGiB, .used = 9 * kGiB});
  EXPECT_EQ(MemoryLimitsOf(tree.reader())->reason(),
            "the cgroup allows 12 GiB and has used 9 GiB, says /sys/fs/cgroup/memory.max");
}

TEST(CgroupCpuTest, TheTightestQuotaOfAllLevels) {
  struct Case {
    const char* what;
    std::vector<std::string> quotas;  // the outermost first; as version 2 writes them
    double cores;                     // 0: no quota
  };
  const Case cases[] = {
      {"none", {"max 100000", "max 100000"}, 0},
      {"its own", {"max 100000", "150000 100000"}, 1.5},
      {"the parent's is tighter", {"200000 100000", "400000 100000"}, 2},
      {"its own is tighter", {"400000 100000", "50000 100000"}, 0.5},
      {"in the middle", {"max 100000", "300000 100000", "800000 100000"}, 3},
      {"other periods", {"30000 10000", "400000 100000"}, 3},
      {"at the root, as in a container", {"250000 100000"}, 2.5},
      {"nonsense", {"x", "", "-1 100000", "100000 0", "100000", "1e999 1"}, 0},
  };
  for (const Case& c : cases) {
    for (const int version : {1, 2}) {
      Tree tree;
      std::string path;
      const std::string mount = version == 2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
      for (const std::string& quota : c.quotas) {
        const size_t space = quota.find(' ');
        if (version == 2) {
          tree[mount + path + "/cpu.max"] = quota + "\n";
        } else {
          const std::string first = quota.substr(0, space);
          tree[mount + path + "/cpu.cfs_quota_us"] = first == "max" ? "-1\n" : first + "\n";
          tree[mount + path + "/cpu.cfs_period_us"] =
              space == std::string::npos ? "" : quota.substr(space + 1) + "\n";
        }
        path += "/x";
      }
      path.resize(path.size() - 2);
      tree["/proc/self/cgroup"] =
          (version == 2 ? "0::" : "3:cpu,cpuacct:") + (path.empty() ? "/" : path) + "\n";
      const auto quota = FindCpuQuota(tree.reader());
      EXPECT_EQ(quota ? quota->cores : 0, c.cores) << c.what << ", version " << version;
    }
  }
}

}  // namespace
}  // namespace sluice
