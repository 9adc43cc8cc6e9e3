// A file of tuned settings over the C ABI: it fills in what the caller did not give and nothing
// else, and the report says where each setting came from.

#include <gmock/gmock.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

class TunedTest : public CApiTest {
 protected:
  // Of another machine, and of `path`.
  static Json FileFor(const std::string& path, const char* engine = "threads") {
    const Json settings = {{"request_bytes", 100 * 1024},  // two cells of states, and some
                           {"depth", 7},
                           {"batch", 3},
                           {"engine", engine},
                           {"read_bytes_per_second", 3e9},
                           {"write_bytes_per_second", 1e9},
                           {"mixed_bytes_per_second", 2e9}};
    const Json drive = {{"path", std::filesystem::canonical(path)},
                        {"file_system", "another"},
                        {"device", nullptr},
                        {"model", nullptr},
                        {"serial", nullptr},
                        {"size_bytes", nullptr},
                        {"settings", settings}};
    return {{"sluice_tuned", 1},
            {"machine", {{"host", "another"}, {"cpu", "c"}, {"kernel", "k"}}},
            {"paths", {drive}},
            {"set", settings}};
  }

  void SetUp() override {
    CApiTest::SetUp();
    path_ = dir_.path();
    file_ = dir_.path() + "/tuned.json";
    Write(FileFor(path_).dump());
    options_ = DefaultOptions();
    paths_[0] = path_.c_str();
    options_.nvme_paths = paths_;
    options_.nvme_path_count = 1;
    options_.tuned = file_.c_str();
  }
  void Write(const std::string& text) const { std::ofstream(file_) << text; }

  Json ReportWith(const sluice_options& options) {
    sluice_runtime runtime = 0;
    EXPECT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime)) << Error();
    std::vector<char> text(1 << 17);
    EXPECT_EQ(SLUICE_OK, sluice_report(runtime, text.data(), text.size(), nullptr)) << Error();
    EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime)) << Error();
    return Json::parse(text.data());
  }

  const TempDir dir_;
  std::string path_;
  std::string file_;
  const char* paths_[1] = {nullptr};
  sluice_options options_ = SLUICE_OPTIONS_INIT;
};

TEST_F(TunedTest, WhatIsGivenGoesBeforeTheFile) {
  for (unsigned given = 0; given < 16; ++given) {
    SCOPED_TRACE(given);
    sluice_options options = options_;
    const auto is = [given](unsigned bit) { return (given & bit) != 0; };
    const auto from = [&is](unsigned bit) { return is(bit) ? "given" : "tuned"; };
    if (is(1)) options.chunk_elements = 4096;
    if (is(2)) options.io_depth = 5;
    if (is(4)) options.io_batch = 1;
    if (is(8)) options.io_engine = SLUICE_IO_LIBAIO;
    const Json report = ReportWith(options);
    const Json& io = report["io_settings"];
    EXPECT_EQ(io["tuned_file"], file_);
    EXPECT_EQ(report["chunk_elements"], is(1) ? 4096 : 8192);
    EXPECT_EQ(io["depth"], is(2) ? 5 : 7);
    EXPECT_EQ(io["batch"], is(4) ? 1 : 3);
    EXPECT_THAT(report["engine"].get<std::string>(), HasSubstr(is(8) ? "libaio" : "threads"));
    EXPECT_EQ(io["from"]["chunk_elements"], from(1));
    EXPECT_EQ(io["from"]["depth"], from(2));
    EXPECT_EQ(io["from"]["batch"], from(4));
    EXPECT_EQ(io["from"]["engine"], from(8));
    EXPECT_EQ(io["from"]["drive_rates"], "tuned");
    EXPECT_EQ(report["drives"][0]["read_rate"], 3e9);
    EXPECT_EQ(report["drives"][0]["write_rate"], 1e9);
    ASSERT_EQ(io["warnings"].size(), 2u);
    EXPECT_THAT(io["warnings"][0].get<std::string>(), HasSubstr("another machine"));
    EXPECT_THAT(io["warnings"][1].get<std::string>(), HasSubstr("another drive"));
  }
}

TEST_F(TunedTest, WithoutAFileNothingIsTuned) {
  options_.tuned = nullptr;
  const Json io = ReportWith(options_)["io_settings"];
  EXPECT_TRUE(io["tuned_file"].is_null());
  EXPECT_THAT(io["warnings"], IsEmpty());
  EXPECT_EQ(io["depth"], 16);
  EXPECT_EQ(io["batch"], 2);
  for (const auto& item : io["from"].items()) EXPECT_EQ(item.value(), "default") << item.key();
  // Of an older caller, whose options end before.
  options_.tuned = "/no/such/file";
  const auto older = Shorter(options_, offsetof(sluice_options, tuned));
  EXPECT_TRUE(ReportWith(*older)["io_settings"]["tuned_file"].is_null());
}

TEST_F(TunedTest, WithoutADriveItIsNotUsedAndThatIsSaid) {
  options_.nvme_path_count = 0;
  const Json io = ReportWith(options_)["io_settings"];
  EXPECT_EQ(io["from"]["depth"], "default");
  EXPECT_THAT(io["warnings"][0].get<std::string>(), HasSubstr("is not used: nothing goes to NVMe"));
}

TEST_F(TunedTest, AFileThatIsNoneIsRefusedByName) {
  const auto refused = [this] {
    sluice_runtime runtime = 0;
    const sluice_status status = sluice_runtime_create(model_, &options_, &runtime);
    EXPECT_THAT(Error(), AllOf(HasSubstr("tuned: "), HasSubstr(file_)));
    size_t needed = 0;
    EXPECT_EQ(status, sluice_plan(model_, &options_, nullptr, 0, &needed));
    return status;
  };
  Json wrong = FileFor(path_);
  wrong["set"]["depth"] = 1025;
  Write(wrong.dump());
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, refused());
  EXPECT_THAT(Error(), HasSubstr("set: depth must be a whole number from 1 to 1024, not 1025"));
  Write("{");
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, refused());
  std::filesystem::remove(file_);
  EXPECT_EQ(SLUICE_NOT_FOUND, refused());
}

// From now on, and for what this process starts, as in a container.
bool ForbidIoUring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = static_cast<unsigned short>(std::size(code)), .filter = code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Where the kind that was the best is not to be had, a run goes on with another; where it was asked
// for, it does not.
TEST_F(TunedTest, AnEngineThatIsNotThereIsNotMissed) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the sanitizer lets no child of a process with threads have any";
#endif
  Write(FileFor(path_, "io_uring").dump());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!ForbidIoUring()) _exit(77);
    model_ = MakeModel();
    const Json report = ReportWith(options_);
    const bool another = report["engine"].get<std::string>().starts_with("libaio") ||
                         report["engine"].get<std::string>().starts_with("threads");
    options_.io_engine = SLUICE_IO_URING;
    sluice_runtime runtime = 0;
    const bool refused =
        sluice_runtime_create(model_, &options_, &runtime) == SLUICE_PERMISSION_DENIED;
    _exit(another && refused && report["io_settings"]["from"]["engine"] == "tuned" ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no seccomp filter can be set here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace sluice
