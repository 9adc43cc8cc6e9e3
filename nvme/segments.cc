#include "nvme/segments.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <system_error>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/file_system.h"

namespace sluice {

SegmentTable PlanSegments(std::span<const Bytes> block_sizes, uint32_t paths, Bytes segment_bytes,
                          Bytes alignment) {
  SegmentTable table;
  std::vector<uint32_t> open_file(paths, UINT32_MAX);  // by path: the file that blocks go to now
  for (size_t b = 0; b < block_sizes.size(); ++b) {
    const Bytes length = RoundUp(block_sizes[b], alignment);
    SLUICE_CHECK(block_sizes[b] > Bytes(0) && length <= segment_bytes && paths > 0);
    const auto path = static_cast<uint32_t>(b % paths);
    uint32_t& file = open_file[path];
    if (file == UINT32_MAX || table.file_sizes[file] + length > segment_bytes) {
      file = static_cast<uint32_t>(table.file_sizes.size());
      table.file_sizes.emplace_back();
      table.file_path.push_back(path);
    }
    table.extents.push_back({.file = FileIndex(file),
                             .offset = FileOffset(table.file_sizes[file].value()),
                             .length = length});
    table.file_sizes[file] += length;
  }
  return table;
}

namespace {

struct Drive {
  std::string paths;  // those of them that lie on it
  Bytes needed;
};

}  // namespace

absl::Status CheckSpace(const SegmentTable& table, std::span<const std::string> paths) {
  std::vector<Bytes> by_path(paths.size());
  for (size_t f = 0; f < table.file_sizes.size(); ++f) {
    SLUICE_CHECK(table.file_path[f] < paths.size());
    by_path[table.file_path[f]] += table.file_sizes[f];
  }
  std::map<std::string, Drive> drives;  // by what they are (StorageOf)
  for (size_t p = 0; p < paths.size(); ++p) {
    if (by_path[p] == Bytes(0)) continue;
    SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(paths[p]));
    Drive& drive = drives[StorageOf(paths[p])];
    drive.paths += (drive.paths.empty() ? "" : " and ") + paths[p];
    drive.needed += by_path[p];
    if (drive.needed <= free) continue;
    return absl::ResourceExhaustedError(fmt::format(
        "{} needs {} ({} bytes) of swap space and has {} free: free some, give another path, or "
        "raise the pinned budget",
        drive.paths, FormatBytes(drive.needed), drive.needed.value(), FormatBytes(free)));
  }
  return absl::OkStatus();
}

namespace {

absl::Status CheckDescriptors(size_t files) {
  constexpr size_t kForOthers = 16;  // the engine's, and what a process opens now and then
  rlimit limit{};
  if (files == 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0) return absl::OkStatus();
  std::error_code error;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
  if (error) return absl::OkStatus();
  const auto open = static_cast<size_t>(std::distance(begin(descriptors), end(descriptors)));
  if (open + files + kForOthers <= limit.rlim_cur) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("{} swap files are needed, but this process may open {} files and has opened {}: "
                  "raise the limit (ulimit -n)",
                  files, limit.rlim_cur, open));
}

}  // namespace

Bytes ExtentAlignmentOf(std::span<const std::string> paths) {
  Bytes alignment = kExtentAlignment;
  for (const std::string& path : paths) {
    const auto file = DirectFile::CreateUnnamed(path, 2 * kAlignmentMax);
    if (file.ok()) alignment = std::max(alignment, file->alignment());
  }
  return alignment;
}

Bytes BytesInRam(const SegmentTable& table, std::span<const std::string> paths) {
  Bytes sum;
  for (size_t f = 0; f < table.file_sizes.size(); ++f) {
    if (FileSystemOf(paths[table.file_path[f]]).kind == FileSystemKind::kRam)
      sum += table.file_sizes[f];
  }
  return sum;
}

absl::StatusOr<std::vector<DirectFile>> CreateSegments(const SegmentTable& table,
                                                       std::span<const std::string> paths) {
  SLUICE_RETURN_IF_ERROR(CheckSpace(table, paths));
  SLUICE_RETURN_IF_ERROR(CheckDescriptors(table.file_sizes.size()));
  std::vector<DirectFile> files;
  for (size_t f = 0; f < table.file_sizes.size(); ++f) {
    SLUICE_ASSIGN_OR_RETURN(
        DirectFile file, DirectFile::CreateUnnamed(paths[table.file_path[f]], table.file_sizes[f]));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace sluice
