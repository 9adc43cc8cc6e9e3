#include "nvme/segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(SegmentsTest, ExtentsAreAlignedApartAndInsideTheirFiles) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<Drive> drives(1 + random() % 4);
    for (Drive& drive : drives) drive.rate.read = drive.rate.write = 1 + random() % 9;
    std::vector<BlockShape> blocks(random() % 60);
    for (BlockShape& b : blocks) b = {Bytes(1 + random() % 100'000), uint32_t(random() % 3)};
    const SegmentOptions options{
        .segment_bytes = RoundUp(Bytes(100'000 + random() % 500'000), kExtentAlignment),
        .generations_kept = static_cast<uint32_t>(random() % 3),
        .spares = static_cast<uint32_t>(random() % 3)};
    const SegmentTable table = PlanSegments(blocks, drives, options);

    ASSERT_EQ(table.block_sizes.size(), blocks.size());
    ASSERT_EQ(table.file_drive.size(), table.file_sizes.size());
    std::vector<Bytes> used(table.file_sizes.size());
    std::vector<std::tuple<FileIndex, int64_t, int64_t>> places;
    std::map<std::pair<DriveIndex, Bytes>, std::pair<uint32_t, uint32_t>> own_and_spare;
    for (size_t e = 0; e < table.extents.size(); ++e) {
      const Extent& extent = table.extents[e];
      ASSERT_LT(extent.file.value(), used.size());
      EXPECT_EQ(extent.offset.value() % kExtentAlignment.value(), 0);
      auto& [own, spare] = own_and_spare[{table.file_drive[extent.file.value()], extent.length}];
      if (e < blocks.size()) {
        EXPECT_EQ(table.block_sizes[e], blocks[e].size);
        EXPECT_EQ(extent.length, RoundUp(blocks[e].size, kExtentAlignment));
        ++own;
      } else {
        ++spare;
      }
      used[extent.file.value()] += extent.length;
      places.emplace_back(extent.file, extent.offset.value(),
                          extent.offset.value() + extent.length.value());
    }
    for (const auto& [place, counts] : own_and_spare)
      EXPECT_EQ(counts.second, counts.first * options.generations_kept + options.spares);
    std::sort(places.begin(), places.end());
    for (size_t i = 1; i < places.size(); ++i) {
      const auto& [file, begin, end] = places[i];
      if (file == std::get<0>(places[i - 1])) {
        EXPECT_GE(begin, std::get<2>(places[i - 1]));
      }
    }
    for (const auto& [file, begin, end] : places) {
      EXPECT_LE(end, table.file_sizes[file.value()].value());
    }
    // Nothing is taken that no extent needs.
    EXPECT_EQ(used, table.file_sizes);
    for (Bytes size : table.file_sizes) EXPECT_LE(size, options.segment_bytes);
  }
}

TEST(SegmentsTest, DrivesOfOneRateGetEqualShares) {
  TempDir a;
  TempDir b;
  const std::vector<BlockShape> blocks(10, {.size = KiB(100)});
  const Drive drives[] = {{.path = a.path()}, {.path = b.path()}};
  const auto files = CreateSegments(PlanSegments(blocks, drives, {.segment_bytes = KiB(256)}));
  ASSERT_TRUE(files.ok()) << files.status();
  Bytes taken[2];
  Bytes reported[2];
  for (const DirectFile& file : *files) {
    const size_t path = file.directory() == a.path() ? 0 : 1;
    taken[path] += file.allocated();
    reported[path] += file.size();
  }
  EXPECT_EQ(reported[0], KiB(500));
  EXPECT_EQ(reported[0], reported[1]);
  for (size_t p = 0; p < 2; ++p) {
    EXPECT_NEAR(static_cast<double>(taken[p].value()), static_cast<double>(reported[p].value()),
                0.02 * static_cast<double>(reported[p].value()));
  }
  EXPECT_TRUE(a.empty() && b.empty());
}

// States and parameters alternate, as chunks do: each kind is on every drive.
TEST(SegmentsTest, EachKindIsSpreadByRate) {
  std::vector<BlockShape> blocks;
  for (int i = 0; i < 1000; ++i) {
    blocks.push_back({.size = KiB(48), .kind = 0});
    blocks.push_back({.size = KiB(8), .kind = 1});
  }
  const Drive drives[] = {{.rate = {.read = 4, .write = 4}}, {.rate = {.read = 1, .write = 1}}};
  const SegmentTable table = PlanSegments(blocks, drives, {.segment_bytes = MiB(16)});
  for (size_t kind = 0; kind < 2; ++kind) {
    int on_first = 0;
    for (size_t i = 0; i < 1000; ++i) {
      const FileIndex file = table.extents[2 * i + kind].file;
      if (table.file_drive[file.value()] == DriveIndex(0)) ++on_first;
      EXPECT_NEAR(on_first, 0.8 * static_cast<double>(i + 1), 1);
    }
  }
}

TEST(SegmentsTest, NoBlocksTakeNoFiles) {
  const SegmentTable table = PlanSegments({}, {}, {});
  EXPECT_TRUE(table.extents.empty());
  const auto files = CreateSegments(table);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->empty());
}

class SpaceTest : public testing::Test {
 protected:
  // Files over `paths` that need `share` of what is free there, each.
  absl::Status Take(double share, std::span<const std::string> paths) {
    struct statvfs fs {};
    SLUICE_CHECK(statvfs(dir_.path().c_str(), &fs) == 0);
    const auto free = static_cast<double>(fs.f_bavail * fs.f_frsize);
    needed_ = RoundUp(Bytes(static_cast<int64_t>(share * free)), kExtentAlignment);
    SegmentTable table;
    for (uint32_t p = 0; p < paths.size(); ++p) {
      table.drives.push_back({.path = paths[p]});
      table.file_sizes.push_back(needed_);
      table.file_drive.push_back(DriveIndex(p));
    }
    return CreateSegments(table).status();
  }

  TempDir dir_;
  Bytes needed_;
};

TEST_F(SpaceTest, TooLittleIsRefusedUpFrontWithNumbers) {
  const std::string paths[] = {dir_.path()};
  const absl::Status status = Take(1.5, paths);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr(dir_.path()), HasSubstr("free"),
                                     HasSubstr(fmt::format("{} bytes", needed_.value()))));
  EXPECT_TRUE(dir_.empty());
}

TEST_F(SpaceTest, PathsOnOneDriveAreAddedUp) {
  const std::string sub = dir_.path() + "/sub";
  std::filesystem::create_directory(sub);
  const std::string paths[] = {dir_.path(), sub};
  const absl::Status status = Take(0.75, paths);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr(dir_.path() + " and " + sub),
                                     HasSubstr(fmt::format("{} bytes", 2 * needed_.value()))));
}

TEST(SegmentsTest, EveryAlignmentIsKept) {
  for (int64_t alignment = 4096; alignment <= 65536; alignment *= 2) {
    const SegmentTable table =
        PlanSegments(std::vector<BlockShape>(20, {.size = Bytes(100'001)}), std::vector<Drive>(2),
                     {.segment_bytes = MiB(1), .alignment = Bytes(alignment)});
    for (const Extent& extent : table.extents) {
      EXPECT_EQ(extent.offset.value() % alignment, 0);
      EXPECT_EQ(extent.length, RoundUp(Bytes(100'001), Bytes(alignment)));
    }
  }
}

TEST(SegmentsTest, MoreFilesThanTheProcessMayOpenAreRefusedUpFront) {
  TempDir dir;
  const Drive drives[] = {{.path = dir.path()}};
  const SegmentTable table = PlanSegments(std::vector<BlockShape>(60, {.size = KiB(4)}), drives,
                                          {.segment_bytes = KiB(4)});
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  rlimit low = old;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const absl::Status status = CreateSegments(table).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(Message(status)),
              AllOf(HasSubstr("60 swap files are needed"), HasSubstr("may open 64 files"),
                    HasSubstr("ulimit -n")));
  EXPECT_TRUE(CreateSegments(table).ok());
}

TEST_F(SpaceTest, APathThatIsMissingIsNamed) {
  const std::string paths[] = {dir_.path() + "/missing"};
  const absl::Status status = Take(0.001, paths);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(paths[0]));
}

}  // namespace
}  // namespace sluice
