#include "nvme/direct_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "core/status.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

DirectFile Create(const std::string& directory, Bytes size) {
  absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(directory, size);
  SLUICE_CHECK_MSG(file.ok(), Message(file.status()));
  return *std::move(file);
}

TEST(DirectFileTest, HasNoNameAndBelongsToItsOwnerAlone) {
  TempDir dir;
  const DirectFile file = Create(dir.path(), MiB(1));
  EXPECT_TRUE(dir.empty());
  struct stat info {};
  ASSERT_EQ(fstat(file.fd(), &info), 0);
  EXPECT_EQ(info.st_nlink, 0u);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_TRUE(fcntl(file.fd(), F_GETFD) & FD_CLOEXEC);
}

TEST(DirectFileTest, NothingIsLeftOfAProcessThatWasKilled) {
  TempDir dir;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir.path(), MiB(1));
    const char result = file.ok() ? 'y' : 'n';
    (void)!write(ready[1], &result, 1);
    for (;;) pause();
  }
  char result = 0;
  ASSERT_EQ(read(ready[0], &result, 1), 1);
  EXPECT_EQ(result, 'y');
  EXPECT_TRUE(dir.empty());
  ASSERT_EQ(kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(dir.empty());
  close(ready[0]);
  close(ready[1]);
}

TEST(DirectFileTest, ItsSpaceIsTakenFromTheStart) {
  TempDir dir;
  for (Bytes size : {KiB(64), MiB(1) + Bytes(4096), MiB(24)}) {
    const DirectFile file = Create(dir.path(), size);
    EXPECT_EQ(file.size(), size);
    EXPECT_GE(file.allocated(), size);
    EXPECT_LE(file.allocated().value(), size.value() + size.value() / 50);
  }
  EXPECT_EQ(Create(dir.path(), Bytes(0)).allocated(), Bytes(0));
}

TEST(DirectFileTest, SaysWhetherItsInputAndOutputAreDirect) {
  TempDir dir;
  const DirectFile file = Create(dir.path(), KiB(64));
  EXPECT_EQ((fcntl(file.fd(), F_GETFL) & O_DIRECT) != 0, file.direct());
  EXPECT_THAT(file.description(),
              AllOf(HasSubstr(dir.path()),
                    HasSubstr(file.direct() ? "direct I/O, alignment" : "plain I/O")));
  // What is called direct behaves so: all that is called aligned works, and other reads of what was
  // written don't.
  AlignedBuffer buffer(16384);
  const auto alignment = file.alignment().size();
  ASSERT_EQ(pwrite(file.fd(), buffer.view().data(), 16384, 0), 16384);
  EXPECT_EQ(pread(file.fd(), buffer.view().data() + alignment % 4096, alignment,
                  static_cast<off_t>(alignment)),
            static_cast<ssize_t>(alignment));
  if (file.direct()) {
    EXPECT_EQ(pread(file.fd(), buffer.view().data() + 1, 4096, 1), -1);
  }
}

TEST(DirectFileTest, WithoutDirectIoItIsPlainAndSaysSo) {
  const std::string shm = "/dev/shm";
  struct stat info {};
  if (stat(shm.c_str(), &info) != 0 || access(shm.c_str(), W_OK) != 0) GTEST_SKIP() << "no " << shm;
  const DirectFile file = Create(shm, KiB(64));
  if (file.direct()) GTEST_SKIP() << "direct I/O in " << shm;
  EXPECT_EQ(file.alignment(), Bytes(1));
  EXPECT_THAT(file.description(), HasSubstr("plain I/O through the page cache"));
  char byte = 'x';
  EXPECT_EQ(pwrite(file.fd(), &byte, 1, 3), 1);
}

TEST(DirectFileTest, ErrorsNameTheDirectory) {
  TempDir dir;
  const std::string missing = dir.path() + "/missing";
  absl::Status status = DirectFile::CreateUnnamed(missing, MiB(1)).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(missing));

  const std::string plain = dir.path() + "/file";
  std::ofstream(plain) << "kept";
  status = DirectFile::CreateUnnamed(plain, MiB(1)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(plain));
  std::string kept;
  std::ifstream(plain) >> kept;
  EXPECT_EQ(kept, "kept");
}

TEST(DirectFileTest, TooLittleSpaceIsSaidWithNumbers) {
  TempDir dir;
  struct statvfs fs {};
  ASSERT_EQ(statvfs(dir.path().c_str(), &fs), 0);
  const Bytes all(static_cast<int64_t>(fs.f_blocks * fs.f_frsize));
  const absl::Status status = DirectFile::CreateUnnamed(dir.path(), all + GiB(1)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr(dir.path()), HasSubstr("free"), HasSubstr("ENOSPC")));
  EXPECT_TRUE(dir.empty());
}

TEST(DirectFileTest, ALimitOnFilesIsAnErrorAndNotASignal) {
  TempDir dir;
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit low = old;
  low.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const absl::Status over = DirectFile::CreateUnnamed(dir.path(), MiB(1) + Bytes(1)).status();
  const absl::Status at = DirectFile::CreateUnnamed(dir.path(), MiB(1)).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(over)) << over;
  EXPECT_THAT(Message(over),
              AllOf(HasSubstr(dir.path()), HasSubstr("1 MiB"), HasSubstr("ulimit -f")));
  EXPECT_TRUE(at.ok()) << at;
}

TEST(DirectFileTest, MovingHandsTheDescriptorOn) {
  TempDir dir;
  DirectFile a = Create(dir.path(), KiB(64));
  const int fd = a.fd();
  {
    const DirectFile b = std::move(a);
    EXPECT_EQ(b.fd(), fd);
    EXPECT_EQ(b.size(), KiB(64));
    EXPECT_GE(fcntl(fd, F_GETFD), 0);
  }
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

}  // namespace
}  // namespace sluice
