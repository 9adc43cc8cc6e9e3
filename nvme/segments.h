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
  Bytes length;  // room for the block, rounded up to kExtentAlignment
};

// Every extent starts and ends on it: the largest alignment that a file system asks of direct I/O
// in practice.
inline constexpr Bytes kExtentAlignment = Bytes(4096);

struct SegmentTable {
  std::vector<Extent> extents;      // by block
  std::vector<Bytes> file_sizes;    // by file
  std::vector<uint32_t> file_path;  // by file: index into paths
};

// Pure. `paths` >= 1 unless there are no blocks; block sizes > 0; segment_bytes at least the
// largest block.
SegmentTable PlanSegments(std::span<const Bytes> block_sizes, uint32_t paths, Bytes segment_bytes);

// Whether every drive has room for the files of `table`, also where several paths lie on one.
// Errors: ResourceExhausted naming the paths, what they need and what is free; those of FreeSpace.
absl::Status CheckSpace(const SegmentTable& table, std::span<const std::string> paths);

// Creates the files of `table`. CheckSpace comes first, so that nothing is half made on a full
// disk. Errors: as CheckSpace and DirectFile::CreateUnnamed.
absl::StatusOr<std::vector<DirectFile>> CreateSegments(const SegmentTable& table,
                                                       std::span<const std::string> paths);

}  // namespace sluice

#endif  // SLUICE_NVME_SEGMENTS_H_
