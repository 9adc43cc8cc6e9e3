#include "core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace sluice {
namespace {

using testing::ElementsAre;
using testing::Pair;

TEST(MetricsTest, ACounterIsFoundByItsName) {
  Metrics metrics;
  Counter* reads = metrics.Get("reads");
  reads->Add();
  reads->Add(4);
  metrics.Get("bytes")->Set(-7);
  EXPECT_EQ(reads, metrics.Get("reads"));
  EXPECT_EQ(5, reads->value());
  EXPECT_THAT(metrics.Snapshot(), ElementsAre(Pair("bytes", -7), Pair("reads", 5)));
}

TEST(MetricsTest, SetMaxOnlyRises) {
  Counter peak;
  for (const int64_t n : {3, 9, 4}) peak.SetMax(n);
  EXPECT_EQ(9, peak.value());
}

TEST(MetricsTest, ResetKeepsTheCounters) {
  Metrics metrics;
  Counter* reads = metrics.Get("reads");
  reads->Add(5);
  metrics.Reset();
  EXPECT_EQ(0, reads->value());
  reads->Add();
  EXPECT_THAT(metrics.Snapshot(), ElementsAre(Pair("reads", 1)));
}

TEST(MetricsTest, ManyThreadsCountAndLook) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics, t] {
      Counter* all = metrics.Get("all");
      Counter* own = metrics.Get("own" + std::to_string(t));
      for (int i = 1; i <= 5000; ++i) {
        all->Add();
        own->Add();
        metrics.Get("peak")->SetMax(t * 10'000 + i);
        EXPECT_TRUE(i % 1000 != 0 || metrics.Snapshot()["all"] >= i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto values = metrics.Snapshot();
  EXPECT_EQ(20'000, values.at("all"));
  EXPECT_EQ(5000, values.at("own3"));
  EXPECT_EQ(35'000, values.at("peak"));
}

}  // namespace
}  // namespace sluice
