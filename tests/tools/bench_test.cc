// `sluice bench` as people run it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "fmt/format.h"
#include "tests/tools/run_sluice.h"
#include "tools/bench_report.h"

namespace sluice {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using tools::BenchReport;

TEST(BenchTest, WhatIsNotUnderstoodIsExitCode2AndNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {"bench", "sluice bench: "},
      {"bench compore", "'compore' is not a command of `sluice bench`; did you mean 'compare'?"},
      {"bench frobnicate", "`sluice bench --help` lists them"},
      {"bench compare", "sluice bench compare: "},
      {"bench compare a", "`sluice bench compare --help`"},
      {"bench adam --seconds 0", "--seconds"},
      {"bench compare missing.json missing.json", "missing.json"},
      {"bench --bogus", "`sluice bench --help`"},
      {"bench compare a b --bogus", "--bogus"}};
  for (const auto& [arguments, words] : cases) {
    SCOPED_TRACE(arguments);
    const Result result = Sluice(arguments);
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

// Of every benchmark: the JSON is what is read, its figures belong together, names are those of the
// page, and a report compared with itself is the same.
class BenchKindTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, BenchKindTest, testing::Values("adam", "copy", "control"),
                         [](const auto& info) { return info.param; });

TEST_P(BenchKindTest, ReportsAsJsonAndAsAPage) {
  const std::string arguments = fmt::format("bench {} --seconds 0.1", GetParam());
  const TempDir directory;
  const std::string path = directory.path() + "/report.json";
  const Result written = Sluice(fmt::format("{} --json > {}", arguments, path));
  ASSERT_EQ(written.code, 0) << written.err;
  EXPECT_THAT(written.err, IsEmpty());
  const auto report = tools::ReadBenchReport(path);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->benchmark, GetParam());
  EXPECT_GE(report->setup.cores, 1);
  for (const std::string& text :
       {report->setup.version, report->setup.cpu, report->setup.kernel, report->setup.code_path})
    EXPECT_FALSE(text.empty());
  ASSERT_FALSE(report->cases.empty());
  for (const tools::BenchCase& one : report->cases) {
    SCOPED_TRACE(one.name);
    EXPECT_GT(one.value.value_or(0), 0);
    EXPECT_TRUE(one.spread);
    EXPECT_EQ(one.limit.has_value(), one.ratio_to_limit.has_value());
    EXPECT_EQ(one.limit.has_value(), !one.limit_is.empty());
    EXPECT_EQ(one.peer.has_value(), one.ratio_to_peer.has_value());
    EXPECT_EQ(one.peer.has_value(), !one.peer_is.empty());
  }
  const Result same = Sluice(fmt::format("bench compare {0} {0}", path));
  EXPECT_EQ(same.code, 0) << same.err;
  EXPECT_THAT(same.out, HasSubstr(fmt::format("{} same", report->cases.size())));
  const std::string page = tools::BenchPage(*report);
  for (const tools::BenchCase& one : report->cases) EXPECT_THAT(page, HasSubstr("  " + one.name));
}

TEST(BenchTest, CompareEndsWithItsVerdict) {
  const TempDir directory;
  const auto file = [&](const char* name, const std::string& text) {
    const std::string path = directory.path() + "/" + name;
    std::ofstream(path) << text;
    return path;
  };
  const auto report = [&](const char* name, double value) {
    const BenchReport report{.benchmark = "adam",
                             .setup = {.cpu = "a CPU"},
                             .cases = {{.name = "n", .unit = "GB/s", .value = value}},
                             .notes = {}};
    return file(name, tools::BenchJson(report).dump());
  };
  const std::string slow = report("slow", 1);
  const std::string fast = report("fast", 2);
  const std::string bad = file("bad", "{}");
  const struct {
    std::string a, b;
    int code;
    const char* change;
  } cases[] = {{slow, fast, 0, "better"},
               {fast, slow, 1, "worse"},
               {slow, slow, 0, "same"},
               {slow, bad, 2, nullptr},
               {bad, slow, 2, nullptr}};
  for (const auto& c : cases) {
    const std::string arguments = fmt::format("bench compare {} {}", c.a, c.b);
    const Result page = Sluice(arguments);
    EXPECT_EQ(page.code, c.code) << arguments << page.err;
    const Result json = Sluice(arguments + " --json");
    EXPECT_EQ(json.code, c.code);
    if (c.change == nullptr) {
      EXPECT_THAT(page.err, HasSubstr("sluice: " + bad + ": sluice_bench is missing"));
      EXPECT_THAT(page.out, IsEmpty());
      continue;
    }
    EXPECT_THAT(page.out, HasSubstr(c.change));
    EXPECT_EQ(Parsed(json).at("cases").at(0).at("change"), c.change);
    EXPECT_EQ(Parsed(json).at("worse"), c.code == 1);
  }
}

}  // namespace
}  // namespace sluice
