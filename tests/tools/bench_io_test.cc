// `sluice bench io` beside a fio that the test has written: what it is asked to do, what comes of
// what it says, and that nothing stays behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "tests/tools/run_sluice.h"
#include "tools/bench_report.h"
#include "tools/fio.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using tools::BenchCase;
using tools::BenchReport;

// 2 GB/s one way or 1 each way, 25 % of a core.
constexpr const char* kSaid = R"({"fio version": "fio-9.9", "jobs": [{"error": 0,
  "job_runtime": 1000, "usr_cpu": 5.0, "sys_cpu": 20.0,
  "read": {"io_bytes": READ, "bw_bytes": READ}, "write": {"io_bytes": WRITE, "bw_bytes": WRITE}}]})";

std::string Replaced(std::string text, const std::string& what, const std::string& with) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size())
    text.replace(at, what.size(), with);
  return text;
}

class BenchIoTest : public testing::Test {
 protected:
  // A fio whose jobs do `job`, a piece of shell. What it was asked is in asked().
  void WriteFio(const std::string& job) {
    const std::string path = programs_.path() + "/fio";
    std::ofstream(path) << "#!/bin/sh\n"
                        << "if [ \"$1\" = --version ]; then echo fio-9.9; exit 0; fi\n"
                        << "echo \"$@\" >> " << programs_.path() << "/asked\n"
                        << job << "\n";
    ASSERT_EQ(chmod(path.c_str(), 0700), 0);
  }
  // That says what a job like it would, after `first`.
  void WriteGoodFio(const std::string& first = "") {
    const auto said = [](const char* read, const char* write) {
      return Replaced(Replaced(kSaid, "READ", read), "WRITE", write);
    };
    WriteFio(first + "\n" +
             fmt::format(R"(for a in "$@"; do
  case "$a" in
    --filename=*) [ -w "${{a#--filename=}}" ] || exit 3 ;;
    --rw=read) said='{}' ;;
    --rw=write) said='{}' ;;
    --rw=readwrite) said='{}' ;;
  esac
done
echo "note: something"; echo "$said")",
                         said("2000000000", "0"), said("0", "2000000000"),
                         said("1000000000", "1000000000")));
  }
  std::vector<std::string> asked() const {
    std::vector<std::string> lines;
    std::ifstream file(programs_.path() + "/asked");
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  // `sluice bench io` with this fio alone on PATH.
  Result Run(const std::string& more = "") {
    setenv("PATH", programs_.path().c_str(), 1);
    const Result result = Sluice(
        fmt::format("bench io {} --size 144MiB --seconds 0.1 --json {}", drive_.path(), more));
    setenv("PATH", path_.c_str(), 1);
    return result;
  }
  BenchReport ReportOf(const Result& result) {
    const auto report = tools::ParseBenchReport(tools::Json::parse(result.out), "it");
    SLUICE_CHECK_MSG(report.ok(), Message(report.status()));
    return *report;
  }
  static const BenchCase* Find(const BenchReport& report, const std::string& name) {
    for (const BenchCase& one : report.cases) {
      if (one.name == name) return &one;
    }
    return nullptr;
  }

  const std::string path_ = getenv("PATH");
  const TempDir programs_;
  const TempDir drive_;
};

TEST_F(BenchIoTest, WithoutFioThereIsNoPeerAndItSaysHowToGetIt) {
  const Result result = Run();
  ASSERT_EQ(result.code, 0) << result.err;
  const BenchReport report = ReportOf(result);
  EXPECT_EQ(report.benchmark, "io");
  EXPECT_FALSE(report.setup.file_system.empty());
  EXPECT_THAT(report.setup.file_system, testing::Not(HasSubstr(drive_.path())));
  for (const char* mode : {"read", "write", "mixed"}) {
    SCOPED_TRACE(mode);
    EXPECT_EQ(Find(report, fmt::format("{}, engine, beside plain fio", mode)), nullptr);
    const BenchCase* const engine = Find(report, fmt::format("{}, engine", mode));
    const BenchCase* const store = Find(report, fmt::format("{}, store with checksums", mode));
    ASSERT_TRUE(engine != nullptr && store != nullptr);
    EXPECT_FALSE(engine->peer || engine->limit);
    EXPECT_EQ(store->limit, engine->value);
    for (const BenchCase* one : {engine, store}) {
      EXPECT_GT(one->value.value_or(0), 0);
      EXPECT_GE(one->cpu_s_per_gb.value_or(-1), 0);
      EXPECT_GT(one->p50_us.value_or(0), 0);
      EXPECT_GE(one->p99_us.value_or(0), *one->p50_us);
    }
  }
  EXPECT_THAT(report.notes, testing::Contains(HasSubstr("apt-get install fio")));
  EXPECT_TRUE(drive_.empty());
}

TEST_F(BenchIoTest, FioIsAskedForTheSameBytesAndItsBestIsThePeer) {
  WriteGoodFio();
  const Result result = Run("--engine threads");
  ASSERT_EQ(result.code, 0) << result.err;
  const BenchReport report = ReportOf(result);
  EXPECT_THAT(report.setup.code_path, HasSubstr("threads"));
  for (const char* mode : {"read", "write", "mixed"}) {
    SCOPED_TRACE(mode);
    for (const char* name : {"{}, engine", "{}, engine, beside plain fio"}) {
      const BenchCase* const one = Find(report, fmt::format(fmt::runtime(name), mode));
      ASSERT_NE(one, nullptr);
      EXPECT_DOUBLE_EQ(one->peer.value_or(0), 2);
      EXPECT_NEAR(one->ratio_to_peer.value_or(0), *one->value / 2, 1e-9);
      EXPECT_NEAR(one->peer_cpu_s_per_gb.value_or(0), 0.125, 1e-9);
      EXPECT_THAT(one->peer_is, HasSubstr("fio-9.9"));
    }
  }
  const size_t shapes = tools::TunedFioShapes().size();
  const std::vector<std::string> jobs = asked();
  EXPECT_EQ(jobs.size(), 3 * (shapes + 1 + 2 * 5));  // a look at each, and rounds with two
  for (const std::string& job : jobs) {
    EXPECT_THAT(job, AllOf(HasSubstr("--filename=/proc/"), HasSubstr("--allow_file_create=0"),
                           HasSubstr("--time_based=1")));
    // It never goes beyond the file, which it would then try to make longer.
    const auto number = [&job](const std::string& key) {
      return std::atoll(job.c_str() + job.find(key) + key.size());
    };
    EXPECT_EQ(number("--offset=") + number("--size="), 144 << 20);
    EXPECT_GT(number("--size="), 0);
  }
  EXPECT_TRUE(drive_.empty());
}

// However a job ends, what could be measured is.
TEST_F(BenchIoTest, AFioThatFailsIsNoPeerAndItSaysWhy) {
  for (const char* job : {"echo 'it is broken' >&2; exit 1", "kill -9 $$"}) {
    SCOPED_TRACE(job);
    WriteFio(job);
    const Result result = Run();
    ASSERT_EQ(result.code, 0) << result.err;
    const BenchReport report = ReportOf(result);
    ASSERT_NE(Find(report, "mixed, store with checksums"), nullptr);
    EXPECT_FALSE(Find(report, "read, engine")->peer);
    EXPECT_THAT(report.notes, testing::Contains(HasSubstr("no job of fio's runs here")));
    if (std::string(job).find("broken") != std::string::npos) {
      EXPECT_THAT(report.notes, testing::Contains(HasSubstr("it is broken")));
    }
  }
}

// A mode, or an engine, in which fio fails, from the first job on or later: the rest has its peer.
TEST_F(BenchIoTest, AFioThatFailsInPartIsAPeerInTheRest) {
  const std::string count = programs_.path() + "/count";
  const std::string later = "echo x >> " + count + "; [ $(/usr/bin/wc -l < " + count +
                            ") -lt 14 ] || { echo 'it is late' >&2; exit 1; }";
  struct Case {
    const char* words;
    std::string job;
    bool best_in_read, plain_in_read, best_in_write;
  };
  const Case cases[] = {
      {"no writing", R"(case "$*" in *--rw=write*) echo 'no writing' >&2; exit 1;; esac)", true,
       true, false},
      {"no io_uring",
       R"(case "$*" in *--ioengine=io_uring*) echo 'no io_uring' >&2; exit 1;; esac)", true, false,
       true},
      {"it is late", later, false, false, false}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words);
    WriteGoodFio(c.job);
    const Result result = Run();
    ASSERT_EQ(result.code, 0) << result.err;
    const BenchReport report = ReportOf(result);
    ASSERT_NE(Find(report, "mixed, store with checksums"), nullptr);
    EXPECT_EQ(Find(report, "read, engine")->peer.has_value(), c.best_in_read);
    EXPECT_EQ(Find(report, "read, engine, beside plain fio") != nullptr, c.plain_in_read);
    EXPECT_EQ(Find(report, "write, engine")->peer.has_value(), c.best_in_write);
    EXPECT_THAT(report.notes, testing::Contains(HasSubstr(c.words)));
  }
}

// A child of the test's, with its own fio beneath; whichever way it ends, both are gone.
TEST_F(BenchIoTest, WhateverEndsItNothingStaysBehind) {
  WriteFio("echo $$ > " + programs_.path() + "/pid; exec /bin/sleep 1000");
  for (const int signal : {SIGINT, SIGTERM, SIGKILL, SIGHUP}) {
    SCOPED_TRACE(signal);
    const std::string pid_file = programs_.path() + "/pid";
    std::filesystem::remove(pid_file);
    const pid_t child = fork();
    if (child == 0) {
      setenv("PATH", programs_.path().c_str(), 1);
      execl(SLUICE_PROGRAM, "sluice", "bench", "io", drive_.path().c_str(), "--size", "144MiB",
            nullptr);
      _exit(127);
    }
    int fio = 0;
    while (fio == 0) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "ended by itself";
      std::ifstream(pid_file) >> fio;
      std::this_thread::yield();
    }
    kill(child, signal);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal);
    while (std::filesystem::exists(fmt::format("/proc/{}", fio))) {
      std::string state;
      std::ifstream(fmt::format("/proc/{}/stat", fio)) >> state >> state >> state;
      if (state == "Z" || state.empty()) break;  // dead, whoever should know it
      std::this_thread::yield();
    }
    EXPECT_TRUE(drive_.empty());
  }
}

TEST_F(BenchIoTest, WhatCannotBeIsSaid) {
  const std::pair<std::string, const char*> cases[] = {
      {"bench io " + drive_.path() + "/missing", "/missing"},
      {"bench io " + drive_.path() + " --size 1MiB", "--size 1 MiB is too small: at least"},
      {"bench io " + drive_.path() + " --size 1000TiB", "free"}};
  for (const auto& [arguments, words] : cases) {
    SCOPED_TRACE(arguments);
    const Result result = Sluice(arguments);
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_THAT(result.out, IsEmpty());
  }
  for (const char* usage : {"--size 5parsecs", "--engine tape", "--seconds -1"}) {
    EXPECT_EQ(Sluice(std::string("bench io . ") + usage).code, 2) << usage;
  }
}

TEST(FioReportTest, IsReadStrictly) {
  const std::string good = Replaced(Replaced(kSaid, "READ", "3000000000"), "WRITE", "1000000000");
  const auto result = tools::ParseFioReport("fio: warned\n" + good);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->bytes_per_second, 4e9);
  EXPECT_DOUBLE_EQ(result->cpu_seconds_per_byte, 0.25 / 4e9);
  for (const char* key : {"error", "job_runtime", "usr_cpu", "sys_cpu", "jobs"}) {
    EXPECT_FALSE(tools::ParseFioReport(Replaced(good, key, "other")).ok()) << key;
  }
  EXPECT_FALSE(tools::ParseFioReport(Replaced(good, "\"error\": 0", "\"error\": 5")).ok());
  for (size_t cut = 0; cut + 1 < good.size(); cut += 7)
    EXPECT_FALSE(tools::ParseFioReport(good.substr(0, cut)).ok()) << cut;
}

}  // namespace
}  // namespace sluice
