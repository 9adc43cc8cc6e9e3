// `sluice tune`: what it asks, refuses, prints and writes, and that nothing else stays.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/tuned.h"
#include "nvme/tuned_use.h"
#include "tests/tools/run_sluice.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;
using Json = nlohmann::json;

constexpr const char* kLeast = "--max-write 512MiB --seconds 3";

// As a path is said: without what gtest has doubled in it.
std::string Plain(const std::string& path) {
  return std::filesystem::path(path).lexically_normal();
}

std::set<std::string> EntriesOf(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.insert(entry.path().filename());
  return names;
}

TEST(TuneTest, WritesWhatItFoundAndNothingElseStays) {
  const TempDir drive;
  const TempDir settings;
  const std::string file = Plain(settings.path()) + "/tuned.json";
  const Result result =
      Sluice(fmt::format("tune {} --yes {} -o {} </dev/null", drive.path(), kLeast, file));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(EntriesOf(drive.path()), IsEmpty());
  EXPECT_EQ(EntriesOf(settings.path()), std::set<std::string>{"tuned.json"});
  EXPECT_THAT(result.err, AllOf(HasSubstr(drive.path() + ": at most 512 MiB are written"),
                                Not(HasSubstr("%")), Not(HasSubstr("Go on?"))));
  for (const char* words :
       {"every byte was right", "GB/s read", "In a ds_config.json", "\"aio\"",
        "\"tuned\": ", "a model of 7B", "% of the best", "GB/s mixed, by bytes in flight"})
    EXPECT_THAT(result.out, HasSubstr(words));
  EXPECT_THAT(result.out, AllOf(HasSubstr(file), Not(HasSubstr("\x1b"))));

  const auto tuned = ReadTuned(file);
  ASSERT_TRUE(tuned.ok()) << tuned.status();
  ASSERT_EQ(tuned->paths.size(), 1u);
  EXPECT_EQ(tuned->machine, ThisMachine());
  EXPECT_EQ(tuned->paths[0].drive, IdentityOf(FilesBelow(""), drive.path()));
  EXPECT_EQ(tuned->set, tuned->paths[0].settings);
  EXPECT_GE(tuned->set.depth, 4u);
  EXPECT_THAT(ChooseTuned(*tuned, file, ThisMachine(), {&tuned->paths[0].drive, 1}).warnings,
              IsEmpty());
}

TEST(TuneTest, JsonSaysWhatThePageSays) {
  const TempDir drive;
  const std::string file = Plain(drive.path()) + "/it.json";
  const std::string command =
      fmt::format("tune {} -y {} --json -o {} </dev/null", drive.path(), kLeast, file);
  std::ofstream(file) << "a person's own";
  EXPECT_THAT(Sluice(command).err, HasSubstr("it.json is there, and holds no tuned settings"));
  std::string kept;
  std::getline(std::ifstream(file), kept);
  EXPECT_EQ(kept, "a person's own");
  std::filesystem::remove(file);
  ASSERT_EQ(Sluice(command).code, 0);
  const Result result = Sluice(command);  // over the one before
  ASSERT_EQ(result.code, 0) << result.err;
  const Json json = Parsed(result);
  EXPECT_EQ(json["sluice_tune"], 1);
  EXPECT_EQ(json["file"], file);
  EXPECT_EQ(json["tuned"], Json::parse(std::ifstream(file)));
  EXPECT_TRUE(json["set"].is_null());
  const Json& found = json["paths"][0]["found"];
  EXPECT_LE(found["written_bytes"], 512 << 20);
  EXPECT_GT(found["checked_bytes"], 16 << 20);
  EXPECT_TRUE(found["cut_short"]);
  EXPECT_GE(found["tried"].size(), 2u);
  const Json& set = json["tuned"]["set"];
  EXPECT_EQ(json["ds_config"]["aio"]["block_size"], set["request_bytes"]);
  EXPECT_EQ(json["ds_config"]["aio"]["queue_depth"], set["depth"]);
  EXPECT_EQ(json["ds_config"]["sluice"]["tuned"], file);
  EXPECT_LT(json["seconds"], 4);
  EXPECT_EQ(EntriesOf(drive.path()), std::set<std::string>{"it.json"});
}

// A file by hand, so that what comes of it is known.
std::string FileFor(const TempDir& drive, const std::string& file) {
  const TunedSettings settings{.request = KiB(100),  // two cells of 12 bytes an element
                               .depth = 5,
                               .batch = 1,
                               .engine = IoEngineKind::kThreads,
                               .read_rate = 4e9,
                               .write_rate = 1e9,
                               .mixed_rate = 2e9};
  const Tuned tuned{.machine = ThisMachine(),
                    .paths = {{IdentityOf(FilesBelow(""), drive.path()), settings}},
                    .set = settings};
  std::ofstream(file) << TunedText(tuned);
  return file;
}

TEST(TuneTest, APlanTakesDirectoriesRequestsAndTimeFromTheFile) {
  const TempDir drive;
  const TempDir other;
  const std::string file = FileFor(drive, other.path() + "/it.json");
  const std::string plan =
      "plan 1B --layers 4 --device host --hbm 8GiB --pinned 4GiB --json --tuned " + file;
  const Json json = Parsed(Sluice(plan));
  EXPECT_EQ(json["chunk_elements"], 8192);
  const Json& traffic = json["step_traffic"];
  ASSERT_GT(traffic["nvme_read_bytes"], 1e9);  // though no path was given
  const auto read = traffic["nvme_read_bytes"].get<double>();
  const auto written = traffic["nvme_write_bytes"].get<double>();
  const double both = std::min(read, written);
  EXPECT_NEAR(json["tuned"]["nvme_seconds"],
              2 * both / 2e9 + (read - both) / 4e9 + (written - both) / 1e9, 1e-6);
  EXPECT_EQ(json["tuned"]["file"], file);
  EXPECT_THAT(json["tuned"]["warnings"], IsEmpty());
  EXPECT_EQ(Parsed(Sluice(plan + " --chunk-elements 4096"))["chunk_elements"], 4096);
  const Json elsewhere = Parsed(Sluice(plan + " --nvme-path /no/such/place"));
  EXPECT_THAT(elsewhere["tuned"]["warnings"][0].get<std::string>(),
              HasSubstr("/no/such/place is not in " + file));
  const Result page = Sluice(
      "plan 1B --layers 4 --device host --hbm 8GiB --pinned 4GiB --nvme-path /no --tuned " + file);
  EXPECT_THAT(page.out, AllOf(HasSubstr("NVMe's time"), HasSubstr("/no is not in")));
  EXPECT_EQ(Sluice("plan 1B --tuned /no/such/file").code, 2);
  EXPECT_EQ(Sluice("plan 1B --gpus 2 --tuned " + file).code, 2);
}

TEST(TuneTest, ABenchmarkMovesBytesAsTheFileSays) {
  const TempDir drive;
  const TempDir other;
  const std::string file = FileFor(drive, other.path() + "/it.json");
  const std::string bench =
      "bench io " + drive.path() + " --size 64MiB --seconds 0.1 --json --tuned " + file;
  const std::string programs = std::getenv("PATH");
  setenv("PATH", drive.path().c_str(), 1);  // where no fio is
  const Json json = Parsed(Sluice(bench));
  EXPECT_THAT(json["setup"]["code_path"].get<std::string>(), HasSubstr("threads"));
  EXPECT_THAT(json["notes"].dump(), HasSubstr("with " + file + ": 96 KiB a transfer, 5 in flight"));
  EXPECT_THAT(Parsed(Sluice(bench + " --engine io_uring"))["setup"]["code_path"].get<std::string>(),
              StartsWith("io_uring"));
  setenv("PATH", programs.c_str(), 1);
  const Result none = Sluice("bench io --tuned /no/such/file");
  EXPECT_EQ(none.code, 1);
  EXPECT_THAT(none.err, HasSubstr("/no/such/file"));
}

TEST(TuneTest, SeveralPathsAreTunedOneByOneAndTogether) {
  const TempDir a;
  const TempDir b;
  const std::string file = a.path() + "/it.json";
  const Result result =
      Sluice(fmt::format("tune {} {} -y --max-write 2560MiB --seconds 3 --json -o {} </dev/null",
                         a.path(), b.path(), file));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json json = Parsed(result);
  ASSERT_EQ(json["paths"].size(), 2u);
  EXPECT_LE(json["set"]["written_bytes"], int64_t{1} << 30);  // a quarter of each
  EXPECT_LE(json["paths"][1]["found"]["written_bytes"], int64_t{3} << 29);
  EXPECT_THAT(json["warnings"][0].get<std::string>(),
              AllOf(StartsWith(b.path()), HasSubstr("the same file system")));
  EXPECT_THAT(result.err, HasSubstr("warning: " + b.path()));
  ASSERT_TRUE(ReadTuned(file).ok());
  EXPECT_THAT(EntriesOf(b.path()), IsEmpty());
}

TEST(TuneTest, WhatHurtsIsSaidBeforehand) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no file system in RAM here";
  const TempDir settings;
  const Result result = Sluice("tune /dev/shm --max-write 512MiB </dev/null");
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("warning: /dev/shm: tmpfs lies in RAM"));
}

TEST(TuneTest, WhatCannotBeIsRefusedByName) {
  const TempDir dir;
  const std::string here = Plain(dir.path());
  const std::vector<std::tuple<std::string, int, std::string>> cases = {
      {"", 2, "sluice tune: "},
      {here, 2, "sluice: tune: there is no terminal to ask whether so much may be written: give"},
      {here + "/no", 1, here + "/no: No such file"},
      {here + " " + here + "/. -y", 1, "/. is given twice"},
      {here + " -y --max-write 511MiB", 1, "--max-write 511 MiB is too little"},
      {here + " " + here + " -y --max-write 1GiB", 1, "on several drives: at least 2.5 GiB"},
      {here + " -y --max-write much", 2, "'much' is not a size"},
      {here + " -y --seconds 1", 2, "--seconds"},
      {here + " -y --seconds 3601", 2, "--seconds"},
      {here + " -y -o " + here, 1, here + " is not a regular file"},
      {here + " -y -o " + here + "/no/file", 1, "there is no directory"},
      {here + " --bogus", 2, "--bogus"}};
  for (const auto& [arguments, code, words] : cases) {
    SCOPED_TRACE(arguments);
    const Result result = Sluice("tune " + arguments + " </dev/null");
    EXPECT_EQ(result.code, code);
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_THAT(result.out, IsEmpty());
  }
  EXPECT_THAT(EntriesOf(here), IsEmpty());
}

// `sluice tune` at a terminal.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments) {
    child_ = forkpty(&fd_, nullptr, nullptr, nullptr);
    SLUICE_CHECK(child_ >= 0);
    if (child_ > 0) return;
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.data()));
    argv.push_back(nullptr);
    execv(SLUICE_PROGRAM, argv.data());
    _exit(127);
  }
  ~Terminal() { close(fd_); }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void Type(const std::string& text) {
    SLUICE_CHECK(write(fd_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  // Until `words` are there, or the end.
  const std::string& ReadTo(const std::string& words) {
    char buffer[4096];
    while (text_.find(words) == std::string::npos) {
      const ssize_t n = read(fd_, buffer, sizeof(buffer));
      if (n <= 0) break;
      text_.append(buffer, static_cast<size_t>(n));
    }
    return text_;
  }
  int Code() {
    ReadTo("\x01 never");
    int status = 0;
    SLUICE_CHECK(waitpid(child_, &status, 0) == child_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  const std::string& text() const { return text_; }

 private:
  int fd_ = -1;
  pid_t child_ = -1;
  std::string text_;
};

TEST(TuneTest, APersonIsAsked) {
  const TempDir dir;
  const std::string file = dir.path() + "/it.json";
  for (const char* answer : {"n\n", "\n", "no\n"}) {
    Terminal terminal({"sluice", "tune", dir.path(), "--max-write", "512MiB", "-o", file});
    EXPECT_THAT(terminal.ReadTo("[y/N]"), HasSubstr("at most 512 MiB are written"));
    terminal.Type(answer);
    EXPECT_EQ(terminal.Code(), 1);
    EXPECT_THAT(terminal.text(), HasSubstr("sluice: tune: nothing was written"));
    EXPECT_THAT(EntriesOf(dir.path()), IsEmpty());
  }
  Terminal terminal({"sluice", "tune", dir.path(), "--max-write", "512MiB", "-o", file});
  terminal.ReadTo("[y/N]");
  terminal.Type("y\n");
  EXPECT_EQ(terminal.Code(), 0);
  EXPECT_THAT(terminal.text(),
              AllOf(HasSubstr("%  " + dir.path() + ": "), HasSubstr("What it buys")));
  EXPECT_EQ(EntriesOf(dir.path()), std::set<std::string>{"it.json"});
}

TEST(TuneTest, CtrlCLeavesNothing) {
  const TempDir dir;
  for (const char* moment : {"writing the file", "searching, 3 "}) {
    Terminal terminal(
        {"sluice", "tune", dir.path(), "-y", "--seconds", "60", "-o", dir.path() + "/it.json"});
    EXPECT_THAT(terminal.ReadTo(moment), HasSubstr(moment));
    terminal.Type("\x03");
    EXPECT_EQ(terminal.Code(), 1);
    EXPECT_THAT(terminal.text(), HasSubstr("sluice: tune: stopped"));
    EXPECT_THAT(EntriesOf(dir.path()), IsEmpty());
  }
}

}  // namespace
}  // namespace sluice
