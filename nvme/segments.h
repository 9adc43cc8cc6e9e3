// nvme/segments.h
//
// Where blocks lie: extents (file, offset, length), planned once from the blocks' sizes. Blocks are
// dealt over the drives in proportion to their rates, kind by kind, so that every drive works
// whichever kind is moved; each drive holds files ("segments") of at most segment_bytes. Extents
// are multiples of every file's alignment. The table is the only thing that knows: no address is
// computed from a block's number.

#ifndef SLUICE_NVME_SEGMENTS_H_
#define SLUICE_NVME_SEGMENTS_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/checksum.h"
#include "core/types.h"
#include "nvme/direct_file.h"
#include "nvme/drives.h"

namespace sluice {

struct Extent {
  FileIndex file;
  FileOffset offset;
  Bytes length;  // room for a block, rounded up to the table's alignment
};

// The least that every extent starts and ends on: what most drives ask of direct I/O, or more.
inline constexpr Bytes kExtentAlignment = Bytes(4096);

struct BlockShape {
  Bytes size;
  uint32_t kind = 0;     // blocks of one kind are moved in one sweep; kinds are small numbers
  uint32_t columns = 1;  // equal parts side by side, of which a checksum's piece has some each
};

struct SegmentTable {
  std::vector<Drive> drives;
  std::vector<Bytes> block_sizes;      // by block
  std::vector<BlockPieces> pieces;     // by block: what has a checksum of its own
  std::vector<Extent> extents;         // first each block's own, by block; then the spare ones
  std::vector<Bytes> file_sizes;       // by file
  std::vector<DriveIndex> file_drive;  // by file
};

struct SegmentOptions {
  Bytes segment_bytes;  // at least the largest block
  Bytes alignment = kExtentAlignment;
  // Spare extents, for generations that are kept beside the newest: so many for every block, on
  // that block's drive,
  uint32_t generations_kept = 0;
  // and so many more of every length that a drive has.
  uint32_t spares = 0;
};

// Pure. At least one drive unless there are no blocks; block sizes > 0.
SegmentTable PlanSegments(std::span<const BlockShape> blocks, std::span<const Drive> drives,
                          const SegmentOptions& options);

// The alignment that serves files in all of `paths`: at least kExtentAlignment. Found by trying; a
// path where no file can be made is not asked, since making the segments will say why.
Bytes ExtentAlignmentOf(std::span<const std::string> paths);

// How much of the files of `table` is memory, because their drives are file systems in RAM.
Bytes BytesInRam(const SegmentTable& table);

// Whether every drive has room for the files of `table`, also where several are on one file system.
// Errors: ResourceExhausted naming the paths, what they need and what is free; those of FreeSpace.
absl::Status CheckSpace(const SegmentTable& table);

// Creates the files of `table`. CheckSpace comes first, so that nothing is half made on a full
// disk. Errors: as CheckSpace and DirectFile::CreateUnnamed.
absl::StatusOr<std::vector<DirectFile>> CreateSegments(const SegmentTable& table);

}  // namespace sluice

#endif  // SLUICE_NVME_SEGMENTS_H_
