// What swap files make of file systems and drives that this machine may not have, and of those it
// has.

#include "nvme/file_system.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/direct_file.h"
#include "nvme/segments.h"
#include "tests/nvme/fake_drive.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::HasSubstr;
using testing::Not;
using NoCow = FakeDrive::NoCow;

class FileSystemTest : public testing::Test {
 protected:
  void TearDown() override { FakeDrive::Reset(); }
  DirectFile Create(Bytes size) {
    absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir_.path(), size);
    SLUICE_CHECK_MSG(file.ok(), Message(file.status()));
    return *std::move(file);
  }
  TempDir dir_;
  FakeDrive& drive_ = FakeDrive::Get();
};

struct Magic {
  uint32_t magic;
  const char* name;
  bool in_ram, copies, layered;
};
constexpr Magic kMagics[] = {
    {0xEF53, "ext4", false, false, false},
    {0x58465342, "xfs", false, false, false},
    {0xF2F52010, "f2fs", false, false, false},
    {0x6969, "nfs", false, false, false},
    {0xFF534D42, "cifs", false, false, false},
    {0xFE534D42, "smb3", false, false, false},
    {0x00C36400, "ceph", false, false, false},
    {0x01021997, "9p", false, false, false},
    {0x0BD00BD0, "lustre", false, false, false},
    {0x65735546, "fuse", false, false, true},
    {0x794C7630, "overlay", false, false, true},
    {0x9123683E, "btrfs", false, true, false},
    {0xCA451A4E, "bcachefs", false, true, false},
    {0x2FC12FC1, "zfs", false, true, false},
    {0x3434, "nilfs2", false, true, false},
    {0x01021994, "tmpfs", true, false, false},
    {0x858458F6, "ramfs", true, false, false},
    {0x12345678, "file system 0x12345678", false, false, false},
};

TEST_F(FileSystemTest, EachMagicAndWhatBecomesOfCopyOnWrite) {
  for (const Magic& m : kMagics) {
    for (const NoCow no_cow :
         {NoCow::kUnknownCall, NoCow::kRefused, NoCow::kIgnored, NoCow::kTaken}) {
      SCOPED_TRACE(fmt::format("{} {}", m.name, static_cast<int>(no_cow)));
      FakeDrive::Reset();
      drive_.magic = m.magic;
      drive_.no_cow = no_cow;
      const DirectFile file = Create(KiB(64));
      const std::string said = file.description();
      EXPECT_THAT(said, HasSubstr(fmt::format(": {}", m.name)));
      EXPECT_EQ(file.in_ram(), m.in_ram);
      const bool off = (m.copies || m.layered) && no_cow == NoCow::kTaken;
      EXPECT_EQ(said.find("without copy on write") != std::string::npos, off) << said;
      EXPECT_EQ(file.may_run_out(), m.copies && !off);
      EXPECT_EQ(said.find("space may run out") != std::string::npos, m.copies && !off) << said;
      EXPECT_EQ(drive_.flags_set > 0,
                (m.copies || m.layered) && (no_cow == NoCow::kIgnored || no_cow == NoCow::kTaken));
      EXPECT_TRUE(drive_.flags_set == 0 || drive_.empty) << "before anything is in the file";
      if (m.in_ram) {
        EXPECT_FALSE(file.direct());
        EXPECT_THAT(said, HasSubstr("(in RAM)"));
      }
    }
  }
}

TEST_F(FileSystemTest, FilesInRamAreCounted) {
  const Drive drives[] = {{.path = dir_.path()}};
  const SegmentTable table = PlanSegments(std::vector<BlockShape>(10, {.size = KiB(100)}), drives,
                                          {.segment_bytes = MiB(1)});
  EXPECT_EQ(BytesInRam(table), Bytes(0));
  for (const Magic& m : kMagics) {
    drive_.magic = m.magic;
    EXPECT_EQ(BytesInRam(table), m.in_ram ? KiB(1000) : Bytes(0)) << m.name;
  }
}

TEST_F(FileSystemTest, DirectoriesOfOneFileSystemAreOneStorage) {
  TempDir other;
  EXPECT_EQ(StorageOf(dir_.path()), StorageOf(other.path()));
  drive_.magic = 0x794C7630;
  EXPECT_EQ(StorageOf(dir_.path()), StorageOf(other.path()));
  if (access("/dev/shm", X_OK) == 0) {
    FakeDrive::Reset();
    EXPECT_NE(StorageOf(dir_.path()), StorageOf("/dev/shm"));
  }
}

// What a drive needs is found whatever it says, by trying.
TEST_F(FileSystemTest, TheAlignmentOfEachDriveIsFound) {
  if (!Create(KiB(64)).direct()) GTEST_SKIP() << "no direct I/O in " << dir_.path();
  for (int64_t needed = 512; needed <= 1 << 17; needed *= 2) {
    for (const int64_t said : {int64_t{0}, int64_t{512}, needed}) {
      SCOPED_TRACE(fmt::format("{} needed, {} said", needed, said));
      drive_.alignment = needed;
      drive_.said_alignment = static_cast<uint32_t>(said);
      const bool can = needed <= kAlignmentMax.value() && said <= kAlignmentMax.value();
      const DirectFile file = Create(KiB(256));
      const std::string paths[] = {dir_.path()};
      if (can) {
        EXPECT_TRUE(file.direct());
        EXPECT_EQ(file.alignment(), Bytes(needed));
        EXPECT_THAT(file.description(), HasSubstr(fmt::format("direct I/O, alignment {}", needed)));
        EXPECT_EQ(ExtentAlignmentOf(paths), std::max(Bytes(needed), kExtentAlignment));
        continue;
      }
      EXPECT_FALSE(file.direct());
      EXPECT_EQ(file.alignment(), Bytes(1));
      EXPECT_EQ(fcntl(file.fd(), F_GETFL) & O_DIRECT, 0);
      EXPECT_THAT(file.description(), HasSubstr("no direct I/O at alignments up to 64 KiB"));
      EXPECT_EQ(ExtentAlignmentOf(paths), kExtentAlignment);
      char byte = 'x';
      EXPECT_EQ(pwrite(file.fd(), &byte, 1, 5), 1);
    }
  }
}

TEST_F(FileSystemTest, APathThatIsMissingIsNotAsked) {
  const std::string paths[] = {dir_.path() + "/missing"};
  EXPECT_EQ(ExtentAlignmentOf(paths), kExtentAlignment);
}

// A command of the system's; whether it worked.
bool Shell(const std::string& command) {
  return std::system((command + " > /dev/null 2>&1").c_str()) == 0;
}

// A file system of its own on a loop device; needs root.
class LoopTest : public FileSystemTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    const std::string image = dir_.path() + "/image";
    at_ = dir_.path() + "/at";
    if (geteuid() != 0) GTEST_SKIP() << "only root can mount";
    if (!Shell(fmt::format("truncate -s 400M {} && mkdir {}", image, at_)) ||
        !Shell(fmt::format("{} {}", GetParam(), image)))
      GTEST_SKIP() << "no " << GetParam() << " here";
    if (!Shell(fmt::format("mount -o loop {} {}", image, at_)))
      GTEST_SKIP() << "it can't be mounted";
    mounted_ = true;
  }
  void TearDown() override {
    EXPECT_TRUE(!mounted_ || Shell("umount " + at_));
    FileSystemTest::TearDown();
  }
  std::string at_;
  bool mounted_ = false;
};

INSTANTIATE_TEST_SUITE_P(All, LoopTest, testing::Values("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"),
                         [](const auto& info) { return std::string(info.param).substr(5); });

TEST_P(LoopTest, SwapFilesKeepTheirSpaceAndSaySo) {
  const std::string name = std::string(GetParam()).substr(5);
  absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(at_, MiB(16));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->description(), HasSubstr(": " + name));
  EXPECT_FALSE(file->may_run_out()) << file->description();
  EXPECT_TRUE(file->direct()) << file->description();
  // What is reserved can be written again and again when the file system is full.
  const int other = open((at_ + "/other").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  ASSERT_GE(other, 0);
  AlignedBuffer buffer(1 << 20);
  FillRandom(buffer.view(), 1);
  while (write(other, buffer.view().data(), 1 << 20) > 0) {
  }
  (void)!fsync(other);
  close(other);
  for (int round = 0; round < 4; ++round) {
    for (off_t at = 0; at < 16 << 20; at += 1 << 20)
      ASSERT_EQ(pwrite(file->fd(), buffer.view().data(), 1 << 20, at), 1 << 20)
          << strerrorname_np(errno);
    ASSERT_EQ(fsync(file->fd()), 0);
  }
}

TEST_P(LoopTest, SubvolumesAreOneStorage) {
  if (std::string(GetParam()) != "mkfs.btrfs") GTEST_SKIP() << "has none";
  ASSERT_TRUE(Shell(fmt::format("btrfs subvolume create {}/sub", at_)));
  EXPECT_EQ(StorageOf(at_), StorageOf(at_ + "/sub"));
  EXPECT_NE(StorageOf(at_), StorageOf(dir_.path()));
}

}  // namespace
}  // namespace sluice
