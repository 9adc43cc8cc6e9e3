#include "core/memory_rates.h"

#include <gtest/gtest.h>

#include "core/numa.h"

namespace sluice {
namespace {

// In any order, by any number of threads: each figure is one, and memory is left such that the next
// can be had.
TEST(MemoryRatesTest, MeasuresEachWayWhateverCameBefore) {
  for (const int threads : {1, 3}) {
    auto rates = MemoryRates::Create({.cores = CoresOfThread(),
                                      .threads = threads,
                                      .node = {},
                                      .bytes_of_thread = Bytes(1)});  // rounded up
    ASSERT_TRUE(rates.ok()) << rates.status();
    EXPECT_FALSE(rates->share_on_node().has_value());
    double (MemoryRates::*const ways[])() = {&MemoryRates::Read, &MemoryRates::Write,
                                             &MemoryRates::Copy, &MemoryRates::Latency};
    for (const auto first : ways) {
      for (const auto second : ways) {
        EXPECT_GT(((*rates).*first)(), 0);
        EXPECT_GT(((*rates).*second)(), 0);
      }
    }
    // A line takes at least a cycle, and no machine is slower than this.
    EXPECT_GT(rates->Latency(), 1e-11);
    EXPECT_LT(rates->Latency(), 1e-3);
  }
}

TEST(MemoryRatesTest, MoreThanThereIsIsRefused) {
  const auto rates = MemoryRates::Create({.cores = CoresOfThread(),
                                          .threads = 1,
                                          .node = {},
                                          .bytes_of_thread = Bytes(int64_t{1} << 60)});
  EXPECT_TRUE(absl::IsResourceExhausted(rates.status())) << rates.status();
}

}  // namespace
}  // namespace sluice
