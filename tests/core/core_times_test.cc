// What the kernel writes, read back; and what it says of this machine.

#include "core/core_times.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/numa.h"
#include "fmt/format.h"

namespace sluice {
namespace {

Nanos Ticks(int64_t ticks) { return Nanos(ticks * (1'000'000'000 / sysconf(_SC_CLK_TCK))); }

// Tables of any cores with any numbers, of which any are asked for.
TEST(CoreTimesTest, AddsUpWhatIsNotIdle) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    std::string stat = "cpu  1 2 3 4 5 6 7 8 9 10\n";
    std::vector<int> asked;
    int64_t busy = 0;
    for (int core = 0; core < 40; ++core) {
      if (random() % 4 == 0) continue;  // offline
      int64_t of_core = 0;
      stat += fmt::format("cpu{}", core);
      for (int column = 0; column < 10; ++column) {
        const auto ticks = static_cast<int64_t>(random() % (uint64_t{1} << 32));
        stat += fmt::format(" {}", ticks);
        if (column < 8 && column != 3 && column != 4) of_core += ticks;
      }
      stat += "\n";
      if (random() % 2 == 0) continue;
      asked.push_back(core);
      busy += of_core;
    }
    stat += "intr 12 0 0\nctxt 34\nprocs_running 2\n";
    std::shuffle(asked.begin(), asked.end(), random);
    ASSERT_EQ(Ticks(busy), BusyTime(stat, asked)) << stat;
    asked.push_back(40);
    ASSERT_EQ(std::nullopt, BusyTime(stat, asked));
  }
}

TEST(CoreTimesTest, WhatIsNotSaidIsUnknown) {
  const std::vector<int> cores = {0};
  for (const char* stat :
       {"", "\n", "cpu  1 2 3 4 5 6 7 8\n", "cpu0\n", "cpu0 1 2 3 4 5 6 7\n",
        "cpu0 1 2 x 4 5 6 7 8\n", "cpu0 1 2 -3 4 5 6 7 8\n",
        "cpu0 1 2 9223372036854775807 4 5 6 7 8\n", "cpu0 1 2 922337203685 4 5 6 922337203685 8\n",
        "cpux 1 2 3 4 5 6 7 8\n", "intr 1\ncpu0 1 2 3 4 5 6 7 8\n"}) {
    EXPECT_EQ(std::nullopt, BusyTime(stat, cores)) << stat;
  }
  EXPECT_EQ(Ticks(1 + 2 + 3 + 6 + 7 + 8), BusyTime("cpu0 1 2 3 4 5 6 7 8", cores));
  const auto nothing = [](const std::string&) -> absl::StatusOr<std::string> {
    return absl::NotFoundError("no /proc");
  };
  EXPECT_EQ(std::nullopt, ReadCoreTimes(nothing, cores));
}

TEST(CoreTimesTest, ThisKernelSaysIt) {
  const std::vector<int> cores = CoresOfThread();
  const auto before = ReadCoreTimes(FilesBelow(""), cores);
  if (!before) GTEST_SKIP() << "no /proc/stat";
  volatile uint64_t work = 0;
  std::optional<CoreTimes> after;
  do {
    for (int i = 0; i < 1'000'000; ++i) work = work + 1;
    after = ReadCoreTimes(FilesBelow(""), cores);
    ASSERT_TRUE(after);
  } while (after->own == before->own || after->busy == before->busy);
  EXPECT_GT(after->own, before->own);
  EXPECT_GT(after->busy, before->busy);
}

}  // namespace
}  // namespace sluice
