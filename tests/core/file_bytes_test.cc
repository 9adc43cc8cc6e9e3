#include "core/file_bytes.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

size_t EntriesOf(const std::string& directory) {
  const std::filesystem::directory_iterator entries(directory);
  return static_cast<size_t>(std::distance(begin(entries), end(entries)));
}

TEST(FileBytesTest, AFileIsReplacedWhole) {
  const TempDir dir;
  const std::string path = dir.path() + "/file";
  for (const std::string text : {"first", "", "a longer one", "x"}) {
    ASSERT_TRUE(ReplaceFile(path, text).ok());
    EXPECT_EQ(ReadBytes(path, 0, 100).value(), text);
    EXPECT_EQ(EntriesOf(dir.path()), 1u);
  }
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0644u);
}

TEST(FileBytesTest, PartsOfAFileAreRead) {
  const TempDir dir;
  const std::string path = dir.path() + "/file";
  ASSERT_TRUE(ReplaceFile(path, "0123456789").ok());
  for (size_t offset = 0; offset < 12; ++offset)
    for (size_t most = 0; most < 12; ++most)
      EXPECT_EQ(ReadBytes(path, offset, most).value(),
                offset < 10 ? std::string("0123456789").substr(offset, most) : "");
}

TEST(FileBytesTest, WhatFailsNamesThePathAndLeavesNothing) {
  const TempDir dir;
  const std::string nowhere = dir.path() + "/no/file";
  for (const std::string& path : {nowhere, dir.path()}) {
    const absl::Status status = ReplaceFile(path, "text");
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find(path), std::string::npos) << status;
    EXPECT_FALSE(ReadBytes(path, 0, 1).ok());
  }
  EXPECT_EQ(EntriesOf(dir.path()), 0u);
  ASSERT_EQ(mkfifo((dir.path() + "/fifo").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadBytes(dir.path() + "/fifo", 0, 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ReplaceFile(dir.path() + "/fifo", "text")));
}

}  // namespace
}  // namespace sluice
