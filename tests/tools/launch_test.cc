#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "fmt/format.h"
#include "tests/nvme/temp_dir.h"
#include "tests/tools/run_sluice.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

// An interpreter that says its name and every argument but what it is to run, one a line.
std::string Interpreter(const TempDir& directory, const std::string& name) {
  const std::string path = directory.path() + "/" + name;
  std::ofstream(path) << "#!/bin/sh\necho \"" << name << " $1\"\nshift 2\nprintf '[%s]\\n' \"$@\"\n"
                      << "exit 7\n";
  chmod(path.c_str(), 0755);
  return path;
}

class LaunchTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("SLUICE_PYTHON"); }
  void TearDown() override { unsetenv("SLUICE_PYTHON"); }

  const TempDir directory_;
};

TEST_F(LaunchTest, BecomesTheInterpreterWithEveryArgumentAsItIs) {
  setenv("SLUICE_PYTHON", Interpreter(directory_, "chosen").c_str(), 1);
  const Result result = Sluice("launch --num_gpus 2 --json -h 'a b' '' plan --python x -- --help");
  EXPECT_EQ(result.out,
            "chosen -c\n[--num_gpus]\n[2]\n[--json]\n[-h]\n[a b]\n[]\n[plan]\n[--python]\n[x]\n"
            "[--]\n[--help]\n");
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_EQ(result.code, 7);
}

TEST_F(LaunchTest, TheInterpreterIsTheOneNamedOrThatOfTheEnvironmentOrOfThePath) {
  const std::string first = Interpreter(directory_, "first");
  Interpreter(directory_, "python3");
  const std::string path = fmt::format("{}:{}", directory_.path(), std::getenv("PATH"));
  const std::string before = std::getenv("PATH");
  setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(Sluice("launch x").out, "python3 -c\n[x]\n");
  setenv("SLUICE_PYTHON", "", 1);
  EXPECT_EQ(Sluice("launch x").out, "python3 -c\n[x]\n");
  setenv("SLUICE_PYTHON", first.c_str(), 1);
  EXPECT_EQ(Sluice("launch x").out, "first -c\n[x]\n");
  EXPECT_EQ(Sluice("launch --python python3 x").out, "python3 -c\n[x]\n");
  EXPECT_EQ(Sluice("launch --python=python3 --module x").out, "python3 -c\n[--module]\n[x]\n");
  EXPECT_EQ(Sluice("launch --pythonic").out, "first -c\n[--pythonic]\n");
  setenv("PATH", before.c_str(), 1);
}

TEST_F(LaunchTest, AnInterpreterThatCannotBeRunIsAnErrorThatSaysWhatToSet) {
  for (const char* arguments : {"--python /nowhere/python x", "--python= x"}) {
    const Result result = Sluice(std::string("launch ") + arguments);
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.err, AllOf(HasSubstr("No such file or directory"), HasSubstr("--python"),
                                  HasSubstr("SLUICE_PYTHON")));
  }
  const Result result = Sluice("launch --python");
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, StartsWith("sluice: launch --python: names no interpreter"));
}

TEST_F(LaunchTest, AnInterpreterWithoutThePackageSaysSo) {
  unsetenv("PYTHONPATH");
  // Without site packages; `-S` comes before what the launcher gives.
  const std::string path = directory_.path() + "/bare";
  std::ofstream(path) << "#!/bin/sh\nexec python3 -S \"$@\"\n";
  chmod(path.c_str(), 0755);
  const Result result = Sluice("launch --python " + path + " x");
  if (result.err.find("not found") != std::string::npos) GTEST_SKIP() << "no python3 on PATH";
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("SLUICE_PYTHON names another interpreter"));
}

TEST_F(LaunchTest, HelpListsItAndATypingErrorIsTold) {
  EXPECT_THAT(Sluice("--help").out, HasSubstr("launch"));
  const Result result = Sluice("lanch x");
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("did you mean 'launch'?"));
}

}  // namespace
}  // namespace sluice
