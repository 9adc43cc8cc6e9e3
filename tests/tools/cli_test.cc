#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

struct Result {
  int code = -1;
  std::string out;
  std::string err;
};

// Runs `sluice ARGUMENTS`, which the shell cuts at spaces.
Result Sluice(const std::string& arguments) {
  const TempDir directory;
  const std::string errors = directory.path() + "/stderr";
  const std::string command = fmt::format("{} {} 2>{}", SLUICE_PROGRAM, arguments, errors);
  FILE* pipe = popen(command.c_str(), "r");
  SLUICE_CHECK(pipe != nullptr);
  Result result;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
    result.out.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
  std::stringstream text;
  text << std::ifstream(errors).rdbuf();
  result.err = text.str();
  return result;
}

Json Parsed(const Result& result) {
  Json json = Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << result.out;
  return json;
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::stringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(SluiceTest, SaysItsVersion) {
  const Result result = Sluice("--version");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, fmt::format("sluice {} (C ABI version 1)\n", SLUICE_VERSION));
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
      {"doctor extra", "extra"},
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
      {"plan --params 2T", "at most 1T"},
      {"plan --layers 100000 --hidden 1000000", "at most 1T"}};
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

TEST(DoctorTest, SaysWhatWasFoundAndChosenAndAdviceLast) {
  const TempDir directory;
  const Result result = Sluice("doctor --path " + directory.path());
  EXPECT_EQ(result.code, 0);
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
                            "  I/O engine ", "  swap directory "})
    EXPECT_THAT(result.out, HasSubstr(label));
  EXPECT_THAT(result.out, HasSubstr(directory.path() + ": "));
  for (const std::string& line : Lines(result.out)) {
    EXPECT_LE(line.size(), 100 + directory.path().size()) << line;
    EXPECT_FALSE(line.ends_with(' ')) << line;
  }
  EXPECT_TRUE(directory.empty());
}

TEST(DoctorTest, ReportsAsJson) {
  const TempDir directory;
  const Result result = Sluice("doctor --json --path " + directory.path());
  EXPECT_EQ(result.code, 0);
  const Json report = Parsed(result);
  EXPECT_GE(report.at("cpu").at("cores_allowed").get<int>(), 1);
  EXPECT_GT(report.at("memory").at("available_bytes").get<int64_t>(), 0);
  EXPECT_TRUE(report.at("engine").is_string());
  EXPECT_TRUE(report.at("path").at("direct_io").is_boolean());
  EXPECT_GT(report.at("path").at("free_bytes").get<int64_t>(), 0);
  EXPECT_TRUE(report.at("advice").is_array());
}

TEST(DoctorTest, APathThatCannotBeUsedIsExitCode1WithAdvice) {
  const TempDir directory;
  const std::string missing = directory.path() + "/missing";
  const Result text = Sluice("doctor --path " + missing);
  EXPECT_EQ(text.code, 1);
  EXPECT_THAT(text.err, AllOf(HasSubstr(missing), HasSubstr("ENOENT")));
  EXPECT_THAT(text.out, HasSubstr(missing + ": choose a directory"));
  const Result json = Sluice("doctor --json --path " + missing);
  EXPECT_EQ(json.code, 1);
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

TEST(PlanTest, PlacesWithinTheBudgetsAndCreatesNothing) {
  const TempDir directory;
  const std::string arguments =
      "plan --params 20M --hbm 16MiB --pinned 80MiB --nvme-path " + directory.path();
  const Result json = Sluice(arguments + " --json");
  EXPECT_EQ(json.code, 0) << json.err;
  const Json plan = Parsed(json);
  for (const char* tier : {"hbm", "pinned", "nvme"}) {
    EXPECT_GT(plan.at("planned_bytes").at(tier), 0) << tier;
    EXPECT_LE(plan.at("planned_bytes").at(tier), plan.at("budgets_bytes").at(tier)) << tier;
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
  EXPECT_THAT(result.out, AllOf(HasSubstr("too small"), HasSubstr("--nvme-path DIR")));
  const size_t begin = result.out.find("--pinned");
  ASSERT_NE(begin, std::string::npos) << result.out;
  const std::string advice = result.out.substr(begin, result.out.find('\n', begin) - begin);
  EXPECT_EQ(Sluice(model + " " + advice).code, 0) << advice;
}

TEST(PlanTest, ADriveWithoutRoomIsRefusedAsAtStart) {
  const TempDir directory;
  const Result result = Sluice(
      "plan --params 900B --chunk-elements 41943040 --hbm 1GiB --pinned 3TiB --layers 4096 --json "
      "--nvme-path " +
      directory.path());
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr(directory.path() + " needs"), HasSubstr("swap space")));
  EXPECT_THAT(Parsed(result).at("error").get<std::string>(), HasSubstr("swap space"));
}

TEST(PlanTest, AChunkThatIsNoMultipleOfACellIsRefused) {
  const Result result = Sluice("plan --params 1M --chunk-elements 5000 --hbm 1GiB --pinned 1GiB");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("multiple of 4096"));
}

}  // namespace
}  // namespace sluice
