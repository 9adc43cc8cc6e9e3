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
