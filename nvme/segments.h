// nvme/segments.h
//
// Where blocks lie: a table from block to extent (file, offset, length), made once from the blocks'
// sizes. Blocks are dealt over the paths in turn, so that drives share the load; each path holds
// files ("segments") of at most segment_bytes. Extents are multiples of every file's alignment. The
// table is the only thing that knows: no address is computed from a block's number.

#ifndef SLUICE_NVME_SEGMENTS_H_
#define SLUICE_NVME_SEGMENTS_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "nvme/direct_file.h"

namespace sluice {

struct Extent {
  FileIndex file;
  FileOffset offset;
  Bytes length;  // room for the block, rounded up to the table's alignment
};

// The least that every extent starts and ends on: what most drives ask of direct I/O, or more.
inline constexpr Bytes kExtentAlignment = Bytes(4096);

struct SegmentTable {
  std::vector<Extent> extents;      // by block
  std::vector<Bytes> file_sizes;    // by file
  std::vector<uint32_t> file_path;  // by file: index into paths
};

// Pure. `paths` >= 1 unless there are no blocks; block sizes > 0; segment_bytes at least the
// largest block; `alignment` what extents start and end on.
SegmentTable PlanSegments(std::span<const Bytes> block_sizes, uint32_t paths, Bytes segment_bytes,
                          Bytes alignment = kExtentAlignment);

// The alignment that serves files in all of `paths`: at least kExtentAlignment. Found by trying; a
// path where no file can be made is not asked, since making the segments will say why.
Bytes ExtentAlignmentOf(std::span<const std::string> paths);

// How much of the files of `table` is memory, because their paths are on a file system in RAM.
Bytes BytesInRam(const SegmentTable& table, std::span<const std::string> paths);

// Whether every drive has room for the files of `table`, also where several paths lie on one.
// Errors: ResourceExhausted naming the paths, what they need and what is free; those of FreeSpace.
absl::Status CheckSpace(const SegmentTable& table, std::span<const std::string> paths);

// Creates the files of `table`. CheckSpace comes first, so that nothing is half made on a full
// disk. Errors: as CheckSpace and DirectFile::CreateUnnamed.
absl::StatusOr<std::vector<DirectFile>> CreateSegments(const SegmentTable& table,
                                                       std::span<const std::string> paths);

}  // namespace sluice

#endif  // SLUICE_NVME_SEGMENTS_H_
