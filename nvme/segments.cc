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

namespace {

// Adds extents to the files of a table, a drive's one after another.
class Filler {
 public:
  Filler(SegmentTable* table, Bytes segment_bytes)
      : table_(table),
        segment_bytes_(segment_bytes),
        open_file_(table->drives.size(), UINT32_MAX) {}

  void Add(DriveIndex drive, Bytes length) {
    uint32_t& file = open_file_[drive.value()];
    if (file == UINT32_MAX || table_->file_sizes[file] + length > segment_bytes_) {
      file = static_cast<uint32_t>(table_->file_sizes.size());
      table_->file_sizes.emplace_back();
      table_->file_drive.push_back(drive);
    }
    table_->extents.push_back({.file = FileIndex(file),
                               .offset = FileOffset(table_->file_sizes[file].value()),
                               .length = length});
    table_->file_sizes[file] += length;
  }

 private:
  SegmentTable* const table_;
  const Bytes segment_bytes_;
  std::vector<uint32_t> open_file_;  // by drive: the file that is filled now
};

}  // namespace

SegmentTable PlanSegments(std::span<const BlockShape> blocks, std::span<const Drive> drives,
                          const SegmentOptions& options) {
  SegmentTable table;
  table.drives.assign(drives.begin(), drives.end());
  table.block_sizes.reserve(blocks.size());
  table.pieces.reserve(blocks.size());
  table.extents.reserve(blocks.size());
  Filler filler(&table, options.segment_bytes);
  std::vector<Dealer> dealers;                               // by kind
  std::map<std::pair<DriveIndex, Bytes>, uint64_t> lengths;  // how many blocks have them
  const bool spares = options.generations_kept > 0 || options.spares > 0;
  for (const BlockShape& block : blocks) {
    const Bytes length = RoundUp(block.size, options.alignment);
    SLUICE_CHECK(block.size > Bytes(0) && length <= options.segment_bytes);
    while (dealers.size() <= block.kind) dealers.emplace_back(drives);
    const DriveIndex drive = dealers[block.kind].Next(length);
    table.block_sizes.push_back(block.size);
    table.pieces.emplace_back(block.size, block.columns);
    filler.Add(drive, length);
    if (spares) ++lengths[{drive, length}];
  }
  for (const auto& [place, count] : lengths) {
    for (uint64_t i = 0; i < count * options.generations_kept + options.spares; ++i)
      filler.Add(place.first, place.second);
  }
  return table;
}

namespace {

struct Storage {
  std::string paths;  // those of the drives that lie on it
  Bytes needed;
};

}  // namespace

absl::Status CheckSpace(const SegmentTable& table) {
  std::vector<Bytes> by_drive(table.drives.size());
  for (size_t f = 0; f < table.file_sizes.size(); ++f)
    by_drive[table.file_drive[f].value()] += table.file_sizes[f];
  std::map<std::string, Storage> storages;  // by what they are (StorageOf)
  for (size_t d = 0; d < by_drive.size(); ++d) {
    if (by_drive[d] == Bytes(0)) continue;
    const std::string& path = table.drives[d].path;
    SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(path));
    Storage& storage = storages[StorageOf(path)];
    storage.paths += (storage.paths.empty() ? "" : " and ") + path;
    storage.needed += by_drive[d];
    if (storage.needed <= free) continue;
    return absl::ResourceExhaustedError(fmt::format(
        "{} needs {} ({} bytes) of swap space and has {} free: free some, give another path, or "
        "raise the pinned budget",
        storage.paths, FormatBytes(storage.needed), storage.needed.value(), FormatBytes(free)));
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

Bytes BytesInRam(const SegmentTable& table) {
  Bytes sum;
  for (size_t f = 0; f < table.file_sizes.size(); ++f) {
    const std::string& path = table.drives[table.file_drive[f].value()].path;
    if (FileSystemOf(path).kind == FileSystemKind::kRam) sum += table.file_sizes[f];
  }
  return sum;
}

absl::StatusOr<std::vector<DirectFile>> CreateSegments(const SegmentTable& table) {
  SLUICE_RETURN_IF_ERROR(CheckSpace(table));
  SLUICE_RETURN_IF_ERROR(CheckDescriptors(table.file_sizes.size()));
  std::vector<DirectFile> files;
  for (size_t f = 0; f < table.file_sizes.size(); ++f) {
    const std::string& path = table.drives[table.file_drive[f].value()].path;
    SLUICE_ASSIGN_OR_RETURN(DirectFile file, DirectFile::CreateUnnamed(path, table.file_sizes[f]));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace sluice
