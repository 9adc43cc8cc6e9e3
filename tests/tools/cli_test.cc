#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"
#include "tests/tools/run_sluice.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::stringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(SluiceTest, SaysItsVersion) {
  const Result result = Sluice("--version");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, fmt::format("sluice {} (C ABI version 2)\n", SLUICE_VERSION));
  EXPECT_THAT(result.err, IsEmpty());
}

TEST(SluiceTest, HelpListsTheCommandsAndTheExitCodes) {
  const Result result = Sluice("--help");
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.out, AllOf(HasSubstr("doctor"), HasSubstr("plan"), HasSubstr("Exit status")));
  for (const std::string& line : Lines(Sluice("plan --help").out))
    EXPECT_LE(line.size(), 110u) << line;
}

TEST(SluiceTest, WhatIsNotUnderstoodIsExitCode2AndNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "Usage: sluice"},
      {"plam --json", "'plam' is not a command; did you mean 'plan'?"},
      {"frobnicate", "`sluice --help` lists them"},
      {"--bogus", "--bogus"},
      {"doctor one two", "two"},
      {"doctor here --path there", "sluice doctor: "},
      {"plan 7X", "'7X' is neither a count of parameters, like 7B, nor a file"},
      {"plan 7B more", "sluice plan: "},
      {"plan 7B --params 7B", "excludes"},
      {"plan 7B --model config.json", "excludes"},
      {"plan config.json --layers 3", "leave out --layers"},
      {"plan missing.json", "missing.json"},
      {"plan --params twelve", "sluice plan: "},
      {"--bogus", "sluice: "},
      {"doctor --bogus", "--bogus"},
      {"plan --params 1B --dtype fp8", "fp8"},
      {"plan --params 1B --device tpu", "tpu"},
      {"plan --params twelve", "'twelve' is not a count"},
      {"plan --params -5", "-5"},
      {"plan --params 0", "'0' is not a count"},
      {"plan --params 7X", "'7X' is not a count"},
      {"plan --params 1B --hbm 5parsecs", "'5parsecs' is not a size"},
      {"plan --params 1B --layers 0", "--layers"},
      {"plan --params 1B --chunk-elements -1", "--chunk-elements"},
      {"plan", "--params"},
      {"plan --layers 12", "--hidden"},
      {"plan --params 1B --vocab 7", "--vocab"},
      {"plan --params 1M --layers 12 --hidden 768", "leaves nothing of 1000000"},
      {"plan --params 31", "31 parameters can't make 32 units"},
      {"plan --params 20T", "at most 16T"},
      {"plan --layers 100000 --hidden 1000000", "at most 16T"}};
  for (const auto& [arguments, words] : cases) {
    SCOPED_TRACE(arguments);
    const Result result = Sluice(arguments);
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST(SluiceTest, OutputThatCannotBeWrittenIsAnError) {
  const Result result = Sluice("plan --params 1M --hbm 1GiB --pinned 1GiB >/dev/full");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("writing the output: No space left on device"));
}

// 1 where this machine works slower than it could, which is no error.
int DoctorsCode(const Json& report) {
  const auto verdict = report.at("verdict").get<std::string>();
  return verdict == "fine" ? 0 : verdict == "slower" ? 1 : 2;
}

TEST(DoctorTest, SaysWhatWasFoundAndChosenAndAdviceLast) {
  const TempDir directory;
  const Result result = Sluice("doctor --path " + directory.path());
  EXPECT_LE(result.code, 1);
  EXPECT_THAT(result.err, IsEmpty());
  const size_t found = result.out.find("Found\n");
  const size_t chosen = result.out.find("\nChosen\n");
  const size_t advice = result.out.find("\nAdvice\n");
  ASSERT_NE(found, std::string::npos);
  ASSERT_NE(chosen, std::string::npos);
  EXPECT_LT(found, chosen);
  if (advice != std::string::npos) {
    EXPECT_LT(chosen, advice);
  }
  for (const char* label : {"  CPU ", "  memory ", "  device ", "  vector target ", "  buffers ",
                            "  I/O engine ", "  swap directory ", "  drive ", "  verdict "})
    EXPECT_THAT(result.out, HasSubstr(label));
  EXPECT_THAT(result.out, HasSubstr(directory.path() + ": "));
  for (const std::string& line : Lines(result.out)) {
    EXPECT_LE(line.size(), 100 + directory.path().size()) << line;
    EXPECT_FALSE(line.ends_with(' ')) << line;
  }
  EXPECT_TRUE(directory.empty());
}

TEST(DoctorTest, APathNeedNotBeUtf8) {
  const TempDir directory;
  const std::string path = directory.path() + "/\xff\xe9";
  std::filesystem::create_directory(path);
  const Result json = Sluice("doctor --no-measure --json --path " + path);
  EXPECT_EQ(json.code, DoctorsCode(Parsed(json))) << json.err;
  EXPECT_GT(Parsed(json).at("path").at("free_bytes").get<int64_t>(), 0);
  EXPECT_EQ(Sluice("doctor --no-measure --path " + path).code, json.code);
  EXPECT_EQ(Sluice("doctor --json --path " + path + "/missing").code, 2);
}

TEST(DoctorTest, ReportsAsJson) {
  const TempDir directory;
  const Result result = Sluice("doctor --json --path " + directory.path());
  const Json report = Parsed(result);
  EXPECT_EQ(result.code, DoctorsCode(report));
  EXPECT_LE(result.code, 1) << report.at("advice");
  const Json& measured = report.at("measured");
  EXPECT_THAT(measured.at("errors"), IsEmpty());
  for (const char* key : {"memory_read_gb_per_s", "memory_copy_gb_per_s", "drive_read_gb_per_s",
                          "drive_write_gb_per_s", "drive_written_bytes"})
    EXPECT_GT(measured.at(key).get<double>(), 0) << key;
  EXPECT_TRUE(directory.empty());
  EXPECT_FALSE(Parsed(Sluice("doctor --json --no-measure")).contains("measured"));
  EXPECT_GE(report.at("cpu").at("cores_allowed").get<int>(), 1);
  EXPECT_GT(report.at("memory").at("available_bytes").get<int64_t>(), 0);
  EXPECT_TRUE(report.at("engine").is_string());
  EXPECT_TRUE(report.at("path").at("direct_io").is_boolean());
  EXPECT_GT(report.at("path").at("free_bytes").get<int64_t>(), 0);
  EXPECT_TRUE(report.at("advice").is_array());
}

TEST(DoctorTest, APathThatCannotBeUsedIsExitCode2WithAdvice) {
  const TempDir directory;
  const std::string missing = directory.path() + "/missing";
  const Result text = Sluice("doctor --no-measure --path " + missing);
  EXPECT_EQ(text.code, 2);
  EXPECT_THAT(text.err, AllOf(HasSubstr(missing), HasSubstr("ENOENT")));
  EXPECT_THAT(text.out, AllOf(HasSubstr(missing + ": choose a directory"), HasSubstr("can't run")));
  const Result json = Sluice("doctor --json --path " + missing);
  EXPECT_EQ(json.code, 2);
  EXPECT_TRUE(Parsed(json).at("measured").at("drive_read_gb_per_s").is_null());
  EXPECT_THAT(Parsed(json).at("path").at("error").get<std::string>(), HasSubstr("ENOENT"));
}

TEST(PlanTest, BlocksOfAGptHaveTheUsualParameters) {
  const Json plan =
      Parsed(Sluice("plan --layers 12 --hidden 768 --vocab 1000 --json --hbm 1GiB --pinned 8GiB"));
  EXPECT_EQ(plan.at("parameters"), 1000 * 768 + 12 * (12 * 768 * 768 + 13 * 768) + 2 * 768);
  EXPECT_EQ(plan.at("units"), 14);
  EXPECT_EQ(plan.at("tensors"), 1 + 12 * 10 + 1);
}

TEST(PlanTest, TheEmbeddingHasWhatTheBlocksLeaveOfTheParameters) {
  const Json plan =
      Parsed(Sluice("plan --params 7B --layers 32 --hidden 4096 --json --hbm 1TiB --pinned 1TiB "
                    "--chunk-elements 4194304"));
  EXPECT_EQ(plan.at("parameters"), 7'000'000'000);
  EXPECT_EQ(plan.at("units"), 34);
}

TEST(PlanTest, ParametersAloneAreEqualUnits) {
  const Json plan = Parsed(Sluice("plan --params 1.5M --layers 7 --json --hbm 1GiB --pinned 1GiB"));
  EXPECT_EQ(plan.at("parameters"), 1'500'000);
  EXPECT_EQ(plan.at("units"), 7);
  EXPECT_EQ(plan.at("param_dtype"), "bf16");
  EXPECT_EQ(plan.at("grad_dtype"), "bf16");
}

TEST(PlanTest, TypesAreAsAsked) {
  const Json plan = Parsed(
      Sluice("plan --params 1M --dtype fp16 --grad-dtype fp32 --json --hbm 1GiB --pinned 1GiB"));
  EXPECT_EQ(plan.at("param_dtype"), "fp16");
  EXPECT_EQ(plan.at("grad_dtype"), "fp32");
  EXPECT_EQ(plan.at("pinned").at("gradients_bytes").get<int64_t>() / 4'000'000, 1);
}

TEST(PlanTest, SaysWhichDeviceItIsForAndWhy) {
  const std::string model = "plan --params 1M --hbm 1GiB --pinned 1GiB --device host";
  const Json plan = Parsed(Sluice(model + " --json"));
  EXPECT_EQ(plan.at("device").at("kind"), "host");
  EXPECT_THAT(Sluice(model).out, HasSubstr("  device      host: asked for\n"));
}

// The obvious argument needs no flag.
TEST(PlanTest, AModelWithoutAFlagIsThatOfTheFlag) {
  const std::string budgets = " --hbm 16MiB --pinned 80MiB --nvme 1GiB --json";
  EXPECT_EQ(Sluice("plan 20M" + budgets).out, Sluice("plan --params 20M" + budgets).out);
  EXPECT_EQ(Sluice("plan" + budgets + " 20M").out, Sluice("plan --params 20M" + budgets).out);
  const TempDir directory;
  const std::string file = directory.path() + "/config.json";
  std::ofstream(file) << R"({"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2,
                             "vocab_size": 100, "n_positions": 32})";
  const Result plain = Sluice("plan " + file + budgets);
  EXPECT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.out, Sluice("plan --model " + file + budgets).out);
}

TEST(DoctorTest, ADirectoryWithoutAFlagIsThatOfTheFlag) {
  const TempDir directory;
  for (const char* flag : {"", "--path ", "--nvme-path "}) {
    const Result result =
        Sluice(std::string("doctor --no-measure --json ") + flag + directory.path());
    EXPECT_LE(result.code, 1) << result.err;
    EXPECT_TRUE(Parsed(result).contains("path")) << flag;
  }
}

TEST(PlanTest, PlacesWithinTheBudgetsAndCreatesNothing) {
  const TempDir directory;
  const std::string arguments =
      "plan --params 20M --hbm 16MiB --pinned 80MiB --nvme-path " + directory.path();
  const Result json = Sluice(arguments + " --json");
  EXPECT_EQ(json.code, 0) << json.err;
  const Json plan = Parsed(json);
  for (const char* tier : {"hbm", "pinned", "nvme"}) {
    EXPECT_GT(plan.at("planned_bytes").at(tier), 0) << tier;
    const Json& budget = plan.at("budgets_bytes").at(tier);
    EXPECT_EQ(budget.is_null(), std::string(tier) == "nvme") << tier;  // no limit
    if (!budget.is_null()) EXPECT_LE(plan.at("planned_bytes").at(tier), budget) << tier;
  }
  EXPECT_GT(plan.at("step_traffic").at("nvme_read_bytes"), 0);

  const Result text = Sluice(arguments);
  EXPECT_EQ(text.code, 0);
  EXPECT_THAT(text.out, AllOf(HasSubstr("20.0 million in 32 units"), HasSubstr("\nPlaced\n"),
                              HasSubstr("  hbm         16 MiB      16 MiB"),
                              HasSubstr("\nEach step moves\n"), HasSubstr("  from NVMe ")));
  EXPECT_THAT(text.err, IsEmpty());
  EXPECT_TRUE(directory.empty());
}

TEST(PlanTest, ABudgetThatCannotWorkIsAnsweredWithTheSmallestThatWould) {
  const TempDir directory;
  const std::string model = "plan --params 20M --json --nvme-path " + directory.path() +
                            " --nvme {} --hbm {} --pinned {}";
  const Result result = Sluice(fmt::format(fmt::runtime(model), "1KiB", "1KiB", "1KiB"));
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("the hbm budget of 1 KiB (1024 bytes) can't work"));
  const Json report = Parsed(result);
  EXPECT_THAT(result.err, HasSubstr(report.at("error").get<std::string>()));
  const Json& smallest = report.at("smallest_bytes");
  const auto hbm = smallest.at("hbm").get<int64_t>();
  const auto pinned = smallest.at("pinned").get<int64_t>();
  const auto nvme = smallest.at("nvme").get<int64_t>();
  EXPECT_EQ(Sluice(fmt::format(fmt::runtime(model), nvme, hbm, pinned)).code, 0);
  // One byte less of any is too little.
  EXPECT_THAT(Sluice(fmt::format(fmt::runtime(model), nvme, hbm - 1, pinned)).err,
              HasSubstr("hbm budget"));
  EXPECT_THAT(Sluice(fmt::format(fmt::runtime(model), nvme, hbm, pinned - 1)).err,
              HasSubstr("pinned budget"));
  EXPECT_THAT(Sluice(fmt::format(fmt::runtime(model), nvme - 1, hbm, pinned)).err,
              HasSubstr("nvme budget"));
}

TEST(PlanTest, TheAdviceForABudgetThatCannotWorkWorks) {
  const std::string model = "plan --params 20M --hbm 1GiB";
  const Result result = Sluice(model + " --pinned 1MiB");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("too small"), HasSubstr("--nvme SIZE or --nvme-path DIR")));
  const size_t begin = result.out.find("--pinned");
  ASSERT_NE(begin, std::string::npos) << result.out;
  const std::string advice = result.out.substr(begin, result.out.find('\n', begin) - begin);
  EXPECT_EQ(Sluice(model + " " + advice).code, 0) << advice;
}

// Neither drive, path, GPU nor memory needs to be here.
TEST(PlanTest, IsForMachinesThatAreNotThisOne) {
  const std::string model =
      "plan --params 900B --chunk-elements 41943040 --layers 4096 --json --hbm 80GiB --pinned "
      "3TiB ";
  for (const char* where :
       {"--nvme-path /no/such/place", "--nvme 100TiB", "--nvme-path a --nvme-path b",
        "--nvme 100TiB --device cuda", "--nvme-path /dev/null --device cuda"}) {
    SCOPED_TRACE(where);
    const Result result = Sluice(model + where);
    EXPECT_EQ(result.code, 0) << result.err;
    const Json plan = Parsed(result);
    EXPECT_GT(plan.at("planned_bytes").at("nvme").get<int64_t>(), int64_t{8} << 40);
    EXPECT_EQ(plan.at("budgets_bytes").at("hbm"), int64_t{80} << 30);
    EXPECT_EQ(plan.at("budgets_bytes").at("pinned"), int64_t{3} << 40);
  }
  const Json none = Parsed(Sluice("plan --params 1M --json --hbm 1GiB --pinned 1GiB"));
  EXPECT_EQ(none.at("planned_bytes").at("nvme"), 0);
}

TEST(PlanTest, AGpuThatIsNotHereNeedsABudgetByHand) {
  const Result plan = Sluice("plan --params 1B --device cuda --pinned 1TiB");
  if (plan.code == 0) GTEST_SKIP() << "a GPU is here";
  EXPECT_EQ(plan.code, 1);
  EXPECT_THAT(plan.err, HasSubstr("to plan for another machine's GPU, give --hbm"));
  const Result budget = Sluice("plan --params 1B --device cuda --pinned 1TiB --hbm 80GiB");
  EXPECT_EQ(budget.code, 0);
  EXPECT_THAT(budget.out, HasSubstr("no GPU of this machine was looked at"));
}

// By arithmetic: two buffers of each kind, and what may not go to NVMe, gradients where states may
// not.
TEST(PlanTest, SaysWhatRamMustHoldAtLeast) {
  const std::string plan = "plan --params 67108864 --layers 1 --chunk-elements 4096 --hbm 1GiB ";
  constexpr int64_t kElements = 1 << 26;
  constexpr int64_t kBuffers = 2 * 4096 * (12 + 2);
  constexpr int64_t kGradBuffers = 2 * 4096 * 2;
  const Json drive = Parsed(Sluice(plan + "--pinned 1GiB --nvme 1TiB --json"));
  EXPECT_EQ(drive.at("pinned").at("least_bytes"), kBuffers + kGradBuffers);
  const Json ram = Parsed(Sluice(plan + "--pinned 2GiB --json"));
  EXPECT_EQ(ram.at("pinned").at("least_bytes"), (2 + 12) * kElements + kBuffers);
  const Result text = Sluice(plan + "--pinned 1GiB --nvme 1TiB");
  EXPECT_THAT(text.out, HasSubstr("RAM must hold at least 128 KiB: 128 KiB of buffers"));
  const Result small = Sluice(plan + "--pinned 127KiB --nvme 1TiB");
  EXPECT_EQ(small.code, 1);
  EXPECT_THAT(small.err, AllOf(HasSubstr("the pinned budget of 127 KiB (130048 bytes) can't work: "
                                         "RAM must hold at least 128 KiB"),
                               HasSubstr("the smallest that would is 128 KiB (131072 bytes)")));
  EXPECT_EQ(Sluice(plan + "--pinned 128KiB --nvme 1TiB").code, 0);
  // Not a byte less than all gradients and the buffers keeps them all in RAM.
  const auto pinned = [&plan](int64_t bytes) {
    return Parsed(Sluice(fmt::format("{} --pinned {} --nvme 1TiB --json", plan, bytes)));
  };
  const Json all = pinned(2 * kElements + kBuffers);
  EXPECT_EQ(all.at("pinned").at("gradients_bytes"), 2 * kElements);
  EXPECT_EQ(all.at("nvme").at("gradients_bytes"), 0);
  const Json less = pinned(2 * kElements + kBuffers - 1);
  EXPECT_GT(less.at("pinned").at("gradients_bytes"), 0);
  EXPECT_EQ(less.at("nvme").at("gradients_bytes").get<int64_t>() +
                less.at("pinned").at("gradients_bytes").get<int64_t>(),
            2 * kElements);
  EXPECT_GT(less.at("nvme").at("gradients_bytes"), 0);
}

// Whatever is short, the size in the message works when it is copied, and is not what was given.
TEST(PlanTest, SizesInMessagesWorkWhenTheyAreCopied) {
  const std::string model = "plan --params 20M --hbm {} --pinned {} --nvme {} --device host";
  const std::string plenty = "1TiB";
  for (int tier = 0; tier < 3; ++tier) {
    std::string given[] = {tier == 2 ? "16MiB" : plenty, tier == 2 ? "64MiB" : plenty, plenty};
    given[tier] = "1KiB";
    for (int tries = 0; tries < 4; ++tries) {
      const Result result = Sluice(fmt::format(fmt::runtime(model), given[0], given[1], given[2]));
      if (result.code == 0) break;
      const std::string mark = "the smallest that would is ";
      const size_t at = result.err.find(mark);
      ASSERT_NE(at, std::string::npos) << result.err;
      std::string size = result.err.substr(at + mark.size());
      size = size.substr(0, size.find(" ("));
      std::erase(size, ' ');
      EXPECT_NE(size, given[tier]);
      given[tier] = size;
    }
    EXPECT_EQ(Sluice(fmt::format(fmt::runtime(model), given[0], given[1], given[2])).code, 0)
        << given[tier];
  }
}

TEST(PlanTest, NoNumberOfALargeModelOverflows) {
  for (const char* params : {"100B", "1T", "10T", "16T"}) {
    const std::string plan = fmt::format(
        "plan --params {} --device host --hbm 2TiB --pinned 60TiB --nvme-path /none", params);
    const Result text = Sluice(plan);
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_EQ(text.out.find(" -"), std::string::npos) << text.out;
    EXPECT_GE(Parsed(Sluice(plan + " --json"))["step_traffic"]["nvme_write_bytes"], 0);
  }
}

TEST(PlanTest, AChunkThatIsNoMultipleOfACellIsRefused) {
  const Result result = Sluice("plan --params 1M --chunk-elements 5000 --hbm 1GiB --pinned 1GiB");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("multiple of 4096"));
}

}  // namespace
}  // namespace sluice
