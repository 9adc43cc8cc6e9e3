// Reports of benchmarks: what rounds come to, what is written is what is read, what is read is
// strict, and what a comparison says. The oracle is arithmetic.

#include "tools/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/status.h"
#include "tools/bench_compare.h"

namespace sluice::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kUnits[] = {"GB/s", "chunks/s", "s", "ms", "us", "ns"};

BenchReport Report(std::vector<BenchCase> cases) {
  return {.benchmark = "adam",
          .setup = {.commit = "abc", .version = "1", .cpu = "a CPU", .cores = 4, .kernel = "Linux"},
          .cases = std::move(cases),
          .notes = {"a note"}};
}

BenchReport Full() {
  return Report({{.name = "all",
                  .unit = "GB/s",
                  .value = 2.5,
                  .limit = 3,
                  .limit_is = "a limit",
                  .peer = 2,
                  .peer_is = "a peer",
                  .ratio_to_limit = 0.8,
                  .ratio_to_peer = 1.2,
                  .spread = 0.1,
                  .cpu_s_per_gb = 0.5,
                  .peer_cpu_s_per_gb = 0.25,
                  .p50_us = 100,
                  .p99_us = 200,
                  .note = "x"},
                 {.name = "nothing", .unit = "us"}});
}

TEST(BenchReportTest, RoundsBecomeMediansAndQuartiles) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 3}), 2.5);
  EXPECT_DOUBLE_EQ(QuartileSpread({1, 2, 3, 4, 5}), 2.0 / 3);
  EXPECT_EQ(QuartileSpread({7}), 0);
  const BenchCase one = MakeCase("n", "GB/s", {.own = {1, 2, 6}, .limit = {2, 8, 8}, .peer = {}});
  EXPECT_EQ(one.value, 2);
  EXPECT_EQ(one.limit, 8);
  EXPECT_EQ(one.ratio_to_limit, 0.5);  // not of the medians: of the rounds
  EXPECT_FALSE(one.peer || one.ratio_to_peer);
  EXPECT_DOUBLE_EQ(*one.spread, (4 - 1.5) / 2);
}

TEST(BenchReportTest, WhatIsWrittenIsWhatIsRead) {
  const auto read = ParseBenchReport(Json::parse(BenchJson(Full()).dump()), "file");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, Full());
}

// Every value of the document, replaced by every kind of value; every key, taken away or doubled
// under another name.
TEST(BenchReportTest, IsReadStrictly) {
  const Json good = BenchJson(Full());
  std::vector<Json::json_pointer> places;
  const std::function<void(const Json&, const Json::json_pointer&)> walk =
      [&](const Json& json, const Json::json_pointer& at) {
        places.push_back(at);
        if (json.is_object()) {
          for (const auto& [key, value] : json.items()) walk(value, at / key);
        } else if (json.is_array()) {
          for (size_t i = 0; i < json.size(); ++i) walk(json[i], at / i);
        }
      };
  walk(good, Json::json_pointer());
  ASSERT_GT(places.size(), 40u);
  const Json others[] = {nullptr, true, -1, 0, 2.5, "", "word", Json::array(), Json::object()};
  int refused = 0;
  for (const Json::json_pointer& place : places) {
    for (const Json& other : others) {
      Json changed = good;
      changed[place] = other;
      if (const auto read = ParseBenchReport(changed, "file"); read.ok()) {
        EXPECT_EQ(BenchJson(*read), changed) << place.to_string();
      } else {
        EXPECT_THAT(std::string(Message(read.status())), HasSubstr("file"));
        ++refused;
      }
    }
    if (place.empty() || !good[place.parent_pointer()].is_object()) continue;
    for (const bool renamed : {false, true}) {
      Json changed = good;
      Json& parent = changed[place.parent_pointer()];
      if (renamed) {
        parent[place.back() + "x"] = parent[place.back()];
      } else {
        parent.erase(place.back());
      }
      const auto read = ParseBenchReport(changed, "file");
      ASSERT_FALSE(read.ok()) << place.to_string();
      EXPECT_THAT(std::string(Message(read.status())), HasSubstr(place.back()));
    }
  }
  EXPECT_GT(refused, 200);
  Json twice = good;
  twice["cases"].push_back(twice["cases"][0]);
  EXPECT_THAT(std::string(Message(ParseBenchReport(twice, "file").status())),
              HasSubstr("case 3: a second 'all'"));
}

// By unit, for ratios on either side of what counts, of either report's spread.
TEST(BenchCompareTest, SaysWhatChangedBeyondTheSpread) {
  for (const char* unit : kUnits) {
    const bool more_is_better = std::string(unit).ends_with("/s");
    for (const double spread_a : {0.0, 0.01, 0.1, 0.3}) {
      for (const double spread_b : {0.0, 0.05, 0.2}) {
        const double counts = std::max({spread_a, spread_b, kLeastChange});
        for (const double part : {-1.5, -1.01, -0.99, 0.0, 0.99, 1.01, 1.5}) {
          // As far from 1, either way.
          const double ratio = part < 0 ? 1 / (1 - part * counts) : 1 + part * counts;
          const auto compared = CompareBenches(
              Report({{.name = "n", .unit = unit, .value = 8, .spread = spread_a}}),
              Report({{.name = "n", .unit = unit, .value = 8 * ratio, .spread = spread_b}}));
          ASSERT_TRUE(compared.ok());
          const BenchChange expected = std::abs(part) < 1             ? BenchChange::kSame
                                       : (part > 0) == more_is_better ? BenchChange::kBetter
                                                                      : BenchChange::kWorse;
          EXPECT_EQ(compared->cases.at(0).change, expected)
              << unit << " " << ratio << " " << counts;
          EXPECT_EQ(compared->worse(), expected == BenchChange::kWorse);
        }
      }
    }
  }
}

TEST(BenchCompareTest, NamesCasesThatOnlyOneHasAndMachinesThatDiffer) {
  BenchReport a = Report({{.name = "both", .unit = "s", .value = 1},
                          {.name = "gone", .unit = "s", .value = 1},
                          {.name = "unmeasured", .unit = "s", .value = 1}});
  BenchReport b = Report({{.name = "new", .unit = "s", .value = 1},
                          {.name = "unmeasured", .unit = "s"},
                          {.name = "both", .unit = "s", .value = 1}});
  b.setup.commit = "def";
  auto compared = CompareBenches(a, b);
  ASSERT_TRUE(compared.ok());
  EXPECT_TRUE(compared->setup_differences.empty());
  std::vector<std::string> changes;
  for (const CaseChange& c : compared->cases) changes.push_back(c.name + ": " + Name(c.change));
  EXPECT_THAT(changes, ElementsAre("both: same", "gone: only in a", "unmeasured: not measured",
                                   "new: only in b"));
  EXPECT_FALSE(compared->worse());
  std::string BenchSetup::*const fields[] = {&BenchSetup::cpu, &BenchSetup::kernel,
                                             &BenchSetup::file_system, &BenchSetup::device,
                                             &BenchSetup::code_path};
  for (const auto field : fields) {
    BenchReport other = a;
    other.setup.*field = "another";
    compared = CompareBenches(a, other);
    ASSERT_EQ(compared->setup_differences.size(), 1u);
    EXPECT_THAT(compared->setup_differences[0], HasSubstr("another in b"));
  }
  b.benchmark = "copy";
  EXPECT_FALSE(CompareBenches(a, b).ok());
  b = a;
  b.cases[0].unit = "ms";
  EXPECT_FALSE(CompareBenches(a, b).ok());
}

TEST(BenchReportTest, FiguresAreShort) {
  EXPECT_EQ(FigureText(1'234'567), "1,234,000");
  EXPECT_EQ(FigureText(12'345), "12,340");
  EXPECT_EQ(FigureText(1234.5), "1234");
  EXPECT_EQ(FigureText(12.3456), "12.35");
  EXPECT_EQ(FigureText(0.001234567), "0.001235");
}

}  // namespace
}  // namespace sluice::tools
