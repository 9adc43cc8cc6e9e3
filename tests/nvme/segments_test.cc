#include "nvme/segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
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
    const uint32_t paths = 1 + random() % 4;
    std::vector<Bytes> sizes(random() % 60);
    for (Bytes& size : sizes) size = Bytes(1 + random() % 100'000);
    const Bytes segment = RoundUp(Bytes(100'000 + random() % 500'000), kExtentAlignment);
    const SegmentTable table = PlanSegments(sizes, paths, segment);

    ASSERT_EQ(table.extents.size(), sizes.size());
    ASSERT_EQ(table.file_path.size(), table.file_sizes.size());
    std::vector<Bytes> used(table.file_sizes.size());
    std::vector<std::tuple<FileIndex, int64_t, int64_t>> places;
    for (size_t b = 0; b < sizes.size(); ++b) {
      const Extent& extent = table.extents[b];
      ASSERT_LT(extent.file.value(), used.size());
      EXPECT_EQ(extent.length, RoundUp(sizes[b], kExtentAlignment));
      EXPECT_EQ(extent.offset.value() % kExtentAlignment.value(), 0);
      EXPECT_EQ(table.file_path[extent.file.value()], b % paths);
      used[extent.file.value()] += extent.length;
      places.emplace_back(extent.file, extent.offset.value(),
                          extent.offset.value() + extent.length.value());
    }
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
    // Nothing is taken that no block needs.
    EXPECT_EQ(used, table.file_sizes);
    for (Bytes size : table.file_sizes) EXPECT_LE(size, segment);
  }
}

TEST(SegmentsTest, DrivesGetEqualShares) {
  TempDir a;
  TempDir b;
  const std::vector<Bytes> sizes(10, KiB(100));
  const std::string paths[] = {a.path(), b.path()};
  const auto files = CreateSegments(PlanSegments(sizes, 2, KiB(256)), paths);
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

TEST(SegmentsTest, NoBlocksTakeNoFiles) {
  const SegmentTable table = PlanSegments({}, 0, Bytes(0));
  EXPECT_TRUE(table.extents.empty());
  const auto files = CreateSegments(table, {});
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
      table.file_sizes.push_back(needed_);
      table.file_path.push_back(p);
    }
    return CreateSegments(table, paths).status();
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
        PlanSegments(std::vector<Bytes>(20, Bytes(100'001)), 2, MiB(1), Bytes(alignment));
    for (const Extent& extent : table.extents) {
      EXPECT_EQ(extent.offset.value() % alignment, 0);
      EXPECT_EQ(extent.length, RoundUp(Bytes(100'001), Bytes(alignment)));
    }
  }
}

TEST(SegmentsTest, MoreFilesThanTheProcessMayOpenAreRefusedUpFront) {
  TempDir dir;
  const std::string paths[] = {dir.path()};
  const SegmentTable table = PlanSegments(std::vector<Bytes>(60, KiB(4)), 1, KiB(4));
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  rlimit low = old;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const absl::Status status = CreateSegments(table, paths).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(Message(status)),
              AllOf(HasSubstr("60 swap files are needed"), HasSubstr("may open 64 files"),
                    HasSubstr("ulimit -n")));
  EXPECT_TRUE(CreateSegments(table, paths).ok());
}

TEST_F(SpaceTest, APathThatIsMissingIsNamed) {
  const std::string paths[] = {dir_.path() + "/missing"};
  const absl::Status status = Take(0.001, paths);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(paths[0]));
}

}  // namespace
}  // namespace sluice
