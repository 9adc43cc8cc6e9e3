// The real files: what the system says is told, nothing is left, and nothing waits.

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "offload/checkpoint/files.h"
#include "tests/offload/saved_model.h"

namespace sluice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class CheckpointFiles : public testing::Test {
 protected:
  CheckpointFiles() {
    std::string name = testing::TempDir() + "files-XXXXXX";
    root = mkdtemp(name.data());
  }
  ~CheckpointFiles() override { std::filesystem::remove_all(root); }
  std::string At(const std::string& name) const { return root + "/" + name; }
  void Put(const std::string& name, const std::string& text) {
    auto file = files->Create(At(name), text.size());
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->Write(0, std::as_bytes(std::span(text))).ok());
    ASSERT_TRUE((*file)->Sync().ok());
  }
  std::string Get(const std::string& name) {
    auto file = files->Open(At(name));
    if (!file.ok()) return std::string(Message(file.status()));
    std::string text((*file)->size(), '\0');
    EXPECT_TRUE((*file)->Read(0, std::as_writable_bytes(std::span(text))).ok());
    return text;
  }
  static size_t OpenFiles() {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
  }

  Files* const files = RealFiles();
  std::string root;
};

TEST_F(CheckpointFiles, AreWrittenInAnyOrderAndRead) {
  constexpr size_t kBlock = 3 << 20;
  const size_t before = OpenFiles();
  {
    auto file = files->Create(At("big"), 12 * kBlock);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(std::filesystem::file_size(At("big")), 12 * kBlock);
    for (size_t i = 0; i < 12; ++i) {
      const size_t place = i * 5 % 12;
      const std::vector<std::byte> bytes(kBlock, static_cast<std::byte>(place + 1));
      ASSERT_TRUE((*file)->Write(place * kBlock, bytes).ok());
    }
    ASSERT_TRUE((*file)->Sync().ok());
    auto in = files->Open(At("big"));
    ASSERT_TRUE(in.ok() && (*in)->size() == 12 * kBlock);
    std::vector<std::byte> got(kBlock);
    for (size_t i = 0; i < 12; ++i) {
      ASSERT_TRUE((*in)->Read(i * kBlock, got).ok());
      EXPECT_EQ(got, std::vector<std::byte>(kBlock, static_cast<std::byte>(i + 1)));
    }
    const absl::Status beyond = (*in)->Read(12 * kBlock - 10, got);
    EXPECT_TRUE(absl::IsDataLoss(beyond)) << beyond;
    EXPECT_THAT(std::string(Message(beyond)), HasSubstr(At("big")));
  }
  EXPECT_EQ(OpenFiles(), before);
}

TEST_F(CheckpointFiles, SayWhatTheSystemSays) {
  Put("a", "text");
  const auto code = [](const absl::Status& status) {
    EXPECT_FALSE(status.ok());
    return status.code();
  };
  using absl::StatusCode;
  EXPECT_EQ(code(files->Create(At("a"), 1).status()), StatusCode::kAlreadyExists);
  EXPECT_EQ(code(files->Create(At("no/a"), 1).status()), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Open(At("no")).status()), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Open(At("a/b")).status()), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Open(root).status()), StatusCode::kUnavailable);
  EXPECT_EQ(code(files->MakeDirectory(root)), StatusCode::kAlreadyExists);
  EXPECT_EQ(code(files->SyncDirectory(At("no"))), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Rename(At("no"), At("b"))), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Exchange(At("no"), At("a"))), StatusCode::kNotFound);
  EXPECT_EQ(code(files->Link(At("a"), At("a"))), StatusCode::kAlreadyExists);
  EXPECT_EQ(code(files->Remove(At("no"))), StatusCode::kNotFound);
  EXPECT_EQ(code(files->List(At("no")).status()), StatusCode::kNotFound);
  EXPECT_EQ(code(files->MakeDirectory("/proc/self/no")), StatusCode::kNotFound);
  ASSERT_EQ(mkfifo(At("fifo").c_str(), 0600), 0);
  EXPECT_EQ(code(files->Open(At("fifo")).status()), StatusCode::kUnavailable);  // and does not wait
  ASSERT_TRUE(files->MakeDirectory(At("d")).ok());
  ASSERT_TRUE(files->MakeDirectory(At("e")).ok());
  Put("d/x", "in d");
  EXPECT_EQ(code(files->Remove(At("d"))), StatusCode::kUnavailable);
  EXPECT_EQ(code(files->Rename(At("e"), At("d"))), StatusCode::kUnavailable);
  EXPECT_EQ(Get("d/x"), "in d");
}

TEST_F(CheckpointFiles, ChangePlacesAndLink) {
  ASSERT_TRUE(files->MakeDirectory(At("d")).ok());
  ASSERT_TRUE(files->MakeDirectory(At("e")).ok());
  Put("d/x", "in d");
  Put("e/x", "in e");
  const absl::Status exchanged = files->Exchange(At("d"), At("e"));
  ASSERT_TRUE(exchanged.ok() || absl::IsUnimplemented(exchanged)) << exchanged;
  if (exchanged.ok()) {
    EXPECT_EQ(Get("d/x"), "in e");
    EXPECT_EQ(Get("e/x"), "in d");
    ASSERT_TRUE(files->Exchange(At("d"), At("e")).ok());
  }
  ASSERT_TRUE(files->Link(At("d/x"), At("d/y")).ok());
  ASSERT_TRUE(files->Remove(At("d/x")).ok());
  EXPECT_EQ(Get("d/y"), "in d");
  EXPECT_THAT(*files->List(At("d")), ElementsAre("y"));
  ASSERT_EQ(symlink("d", At("l").c_str()), 0);
  EXPECT_TRUE(files->IsDirectory(At("d")));
  EXPECT_FALSE(files->IsDirectory(At("l")));  // who removes must not follow it
  ASSERT_EQ(symlink("no", At("dangling").c_str()), 0);
  EXPECT_TRUE(absl::IsAlreadyExists(files->Create(At("dangling"), 0).status()));
  EXPECT_FALSE(std::filesystem::exists(At("no")));
  EXPECT_TRUE(files->SyncDirectory(At("d")).ok());
}

// A limit on files' sizes stands in for a disk that is full: both cut a write short.
TEST_F(CheckpointFiles, ThatDoNotFitAreRefusedBeforeAnythingIsWritten) {
  struct Limit {
    Limit() {
      std::signal(SIGXFSZ, SIG_IGN);
      getrlimit(RLIMIT_FSIZE, &old);
      rlimit now = old;
      now.rlim_cur = 1 << 20;
      setrlimit(RLIMIT_FSIZE, &now);
    }
    ~Limit() { setrlimit(RLIMIT_FSIZE, &old); }
    rlimit old{};
  };
  SavedPart part{.tensors = {{"w", 600'000, 1, FloatType::kF32, {"master"}}},
                 .pieces = {{0, 0, 0, 600'000}}};
  const size_t before = OpenFiles();
  {
    const Limit limit;
    const auto file = files->Create(At("a"), 2 << 20);
    EXPECT_FALSE(file.ok());
    EXPECT_FALSE(std::filesystem::exists(At("a")));
    const auto writer = CheckpointWriter::Begin(files, {At("runs"), "a", 1}, part, "");
    EXPECT_FALSE(writer.ok());
    // Where no space is reserved, writing tells, and so does everything after it.
    auto grows = files->Create(At("b"), 0);
    ASSERT_TRUE(grows.ok()) << grows.status();
    const std::vector<std::byte> bytes(3 << 20);
    const absl::Status written = (*grows)->Write(0, bytes);
    EXPECT_FALSE(written.ok());
    EXPECT_THAT(std::string(Message(written)), HasSubstr(At("b")));
    EXPECT_EQ((*grows)->Sync(), written);
    EXPECT_EQ((*grows)->Write(0, ConstMemoryView(bytes).first(1)), written);
  }
  EXPECT_TRUE(AbandonCheckpoint(files, {At("runs"), "a", 1}).ok());
  EXPECT_THAT(*files->List(At("runs")), ElementsAre());
  EXPECT_EQ(OpenFiles(), before);
}

}  // namespace
}  // namespace sluice
