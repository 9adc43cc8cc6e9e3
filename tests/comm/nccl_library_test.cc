// Where NCCL is looked for, in which order, and what is said when it can't be had. Each case is a
// process of its own, since a library once opened stays.

#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "core/status.h"
#include "tests/comm/fake_nccl/fake_side_stream.h"

namespace sluice {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class NcclLibraryTest : public testing::Test {
 protected:
  void SetUp() override {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    folder_ = fs::temp_directory_path() / ("sluice-nccl-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "nvidia/nccl/lib");
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string Put(const fs::path& at) {
    fs::create_directories(at.parent_path());
    fs::copy_file(FakeNcclPath(), at, fs::copy_options::overwrite_existing);
    return at;
  }
  // `body` returns what is wrong, or nothing.
  static void InAProcess(const std::function<std::string()>& body) {
    EXPECT_EXIT(
        {
          const std::string wrong = body();
          if (!wrong.empty()) std::fprintf(stderr, "wrong: %s\n", wrong.c_str());
          std::_Exit(wrong.empty() ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
  }
  // Opened from `path`, found as `how`.
  static std::string Expect(const NcclSearch& search, const std::string& path,
                            const std::string& how) {
    const auto library = NcclLibrary::Open(search);
    if (!library.ok()) return std::string(Message(library.status()));
    if ((*library)->path() != path) return "it is " + (*library)->path() + ", not " + path;
    return (*library)->found_as() == how ? "" : "it was found as " + (*library)->found_as();
  }
  static std::string ExpectError(const NcclSearch& search, absl::StatusCode code,
                                 const std::vector<std::string>& texts) {
    const absl::Status status = NcclLibrary::Open(search).status();
    if (status.code() != code) return status.ToString();
    for (const std::string& text : texts) {
      if (Message(status).find(text) == std::string_view::npos)
        return text + " is not in: " + status.ToString();
    }
    return "";
  }

  fs::path folder_;
};

TEST_F(NcclLibraryTest, WhatIsNamedIsTakenAndNothingElse) {
  const std::string given = Put(folder_ / "given.so"), other = Put(folder_ / "other.so");
  const std::string absent = folder_ / "absent.so";
  InAProcess([&] { return Expect({.path = given, .packages = {}}, given, "as given"); });
  InAProcess([&] {
    setenv("SLUICE_NCCL_LIBRARY", other.c_str(), 1);
    return Expect({}, other, "as SLUICE_NCCL_LIBRARY says");
  });
  InAProcess([&] {
    setenv("SLUICE_NCCL_LIBRARY", other.c_str(), 1);
    return Expect({.path = given, .packages = {}}, given, "as given");
  });
  InAProcess([&] {  // though there is another one
    dlopen(given.c_str(), RTLD_NOW);
    setenv("SLUICE_NCCL_LIBRARY", absent.c_str(), 1);
    return ExpectError({}, absl::StatusCode::kNotFound,
                       {absent + " as SLUICE_NCCL_LIBRARY says: ", "No such file"});
  });
}

TEST_F(NcclLibraryTest, TheLoadedOneComesFirstThenThePackages) {
  const std::string package = Put(folder_ / "nvidia/nccl/lib/libnccl.so.2");
  const NcclSearch search{.path = "", .packages = {(folder_ / "none").string(), folder_.string()}};
  InAProcess([&] { return Expect(search, package, "in Python's packages"); });
  const std::string loaded = Put(folder_ / "site-packages/torch/libnccl.so.2");
  InAProcess([&] {
    dlopen(loaded.c_str(), RTLD_NOW);
    return Expect(search, loaded, "loaded in this process");
  });
}

TEST_F(NcclLibraryTest, PackagesAreFoundByWhatIsLoadedFromThem) {
  const std::string library = Put(folder_ / "site-packages/torch/lib/libsomething.so");
  InAProcess([&] {
    dlopen(library.c_str(), RTLD_NOW);
    const std::vector<std::string> folders = LoadedPackageFolders();
    const auto found = std::find(folders.begin(), folders.end(), folder_ / "site-packages");
    return std::string(found == folders.end() ? "the folder is not found" : "");
  });
}

TEST_F(NcclLibraryTest, AnErrorSaysWhereItWasLookedFor) {
  void* const system = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (system != nullptr) GTEST_SKIP() << "the system has one";
  InAProcess([&] {
    unsetenv("SLUICE_NCCL_LIBRARY");
    return ExpectError({.path = "", .packages = {"/nowhere"}}, absl::StatusCode::kNotFound,
                       {"NCCL can't be opened; libnccl.so.2 loaded in this process: it is not; "
                        "/nowhere/nvidia/nccl/lib/libnccl.so.2 in Python's packages: ",
                        "; libnccl.so.2 found by the system's loader: ", "SLUICE_NCCL_LIBRARY"});
  });
}

TEST_F(NcclLibraryTest, WhatIsTooOldOrSomethingElseIsRefused) {
  const NcclSearch fake{.path = FakeNcclPath(), .packages = {}};
  for (const auto& [version, name] : {std::pair("21799", "2.17.99"), {"2708", "2.7.8"}}) {
    InAProcess([&, version = version, name = name] {
      OpenFakeNccl().SetFaults((std::string("version=") + version).c_str());
      return ExpectError(fake, absl::StatusCode::kFailedPrecondition,
                         {std::string("(as given) is NCCL ") + name + ", and Sluice needs 2.18"});
    });
  }
  for (const auto& [version, name] : {std::pair("21800", "2.18.0"), {"23203", "2.32.3"}}) {
    OpenFakeNccl().SetFaults((std::string("version=") + version).c_str());
    const auto library = NcclLibrary::Open(fake);
    ASSERT_TRUE(library.ok()) << library.status();
    EXPECT_EQ(name, (*library)->version_name());
    EXPECT_THAT((*library)->description(), HasSubstr(std::string("NCCL ") + name + " (as given: "));
  }
  OpenFakeNccl().SetFaults("");
  InAProcess([&] {
    return ExpectError({.path = "libm.so.6", .packages = {}}, absl::StatusCode::kFailedPrecondition,
                       {"libm.so.6 (as given): it has no ncclGetVersion"});
  });
}

TEST_F(NcclLibraryTest, ResultsAreStatuses) {
  const auto library = NcclLibrary::Open({.path = FakeNcclPath(), .packages = {}}).value();
  EXPECT_TRUE(library->ToStatus(kNcclSuccess, "x", nullptr).ok());
  for (unsigned result = 1; result < 12; ++result) {
    const absl::Status status =
        library->ToStatus(static_cast<NcclResult>(result), "ncclSend", nullptr);
    EXPECT_EQ(result == kNcclRemoteError || result == kNcclSystemError,
              absl::IsUnavailable(status));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("ncclSend: "));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("the last error"));
  }
}

}  // namespace
}  // namespace sluice
