// nvme/extents.h
//
// Which extents are in use, and by how many: a block whose bytes they are, or will be, whoever
// pinned a generation of it, a read of one. An extent with no user is free and waits in the list of
// its drive and length, the one that has been free the longest first, so that one which just failed
// a write is not the next to be tried.
//
// Threads: the control thread. Allocates at creation only.

#ifndef SLUICE_NVME_EXTENTS_H_
#define SLUICE_NVME_EXTENTS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/types.h"
#include "nvme/drives.h"
#include "nvme/segments.h"

namespace sluice {

using ExtentIndex = Strong<struct ExtentTag, uint32_t>;
inline constexpr ExtentIndex kNoExtent{UINT32_MAX};

class ExtentAllocator {
 public:
  // `table` outlives it. Each block's own extent has one user, the spare ones are free.
  explicit ExtentAllocator(const SegmentTable* table);

  const Extent& extent(ExtentIndex index) const { return table_->extents[index.value()]; }
  DriveIndex drive(ExtentIndex index) const {
    return table_->file_drive[extent(index).file.value()];
  }

  // A free extent of exactly `length`, which has one user from then on; none if there is none.
  std::optional<ExtentIndex> Take(DriveIndex drive, Bytes length);
  void AddUser(ExtentIndex index);     // of one that has a user
  void RemoveUser(ExtentIndex index);  // the last one frees it
  bool shared(ExtentIndex index) const { return users_[index.value()] > 1; }

  struct Count {
    size_t all = 0;
    size_t free = 0;
  };
  Count CountOf(DriveIndex drive, Bytes length) const;

 private:
  struct FreeList {
    Count count;
    ExtentIndex first = kNoExtent;
    ExtentIndex last = kNoExtent;
  };
  size_t ListOf(DriveIndex drive, Bytes length) const;
  void Free(ExtentIndex index);

  const SegmentTable* const table_;
  std::vector<Bytes> lengths_;     // that there are, ascending
  std::vector<FreeList> lists_;    // by drive, and in that by length
  std::vector<ExtentIndex> next_;  // by extent: after it in its list
  std::vector<uint32_t> users_;    // by extent
};

}  // namespace sluice

#endif  // SLUICE_NVME_EXTENTS_H_
