#include "nvme/extents.h"

#include <algorithm>

#include "core/status.h"

namespace sluice {

ExtentAllocator::ExtentAllocator(const SegmentTable* table)
    : table_(table), next_(table->extents.size(), kNoExtent), users_(table->extents.size(), 0) {
  for (const Extent& extent : table->extents) {
    if (lengths_.empty() || lengths_.back() != extent.length) {
      const auto at = std::lower_bound(lengths_.begin(), lengths_.end(), extent.length);
      if (at == lengths_.end() || *at != extent.length) lengths_.insert(at, extent.length);
    }
  }
  lists_.resize(table->drives.size() * lengths_.size());
  for (uint32_t e = 0; e < table->extents.size(); ++e) {
    const ExtentIndex index(e);
    ++lists_[ListOf(drive(index), extent(index).length)].count.all;
    if (e < table->block_sizes.size()) {
      users_[e] = 1;
    } else {
      Free(index);
    }
  }
}

size_t ExtentAllocator::ListOf(DriveIndex drive, Bytes length) const {
  const auto at = std::lower_bound(lengths_.begin(), lengths_.end(), length);
  SLUICE_CHECK(at != lengths_.end() && *at == length && drive.value() < table_->drives.size());
  return drive.value() * lengths_.size() + static_cast<size_t>(at - lengths_.begin());
}

void ExtentAllocator::Free(ExtentIndex index) {
  FreeList& list = lists_[ListOf(drive(index), extent(index).length)];
  (list.count.free == 0 ? list.first : next_[list.last.value()]) = index;
  list.last = index;
  ++list.count.free;
}

std::optional<ExtentIndex> ExtentAllocator::Take(DriveIndex drive, Bytes length) {
  FreeList& list = lists_[ListOf(drive, length)];
  if (list.count.free == 0) return std::nullopt;
  --list.count.free;
  const ExtentIndex taken = list.first;
  list.first = next_[taken.value()];
  users_[taken.value()] = 1;
  return taken;
}

void ExtentAllocator::AddUser(ExtentIndex index) {
  SLUICE_CHECK(users_[index.value()] > 0);
  ++users_[index.value()];
}

void ExtentAllocator::RemoveUser(ExtentIndex index) {
  SLUICE_CHECK(users_[index.value()] > 0);
  if (--users_[index.value()] == 0) Free(index);
}

ExtentAllocator::Count ExtentAllocator::CountOf(DriveIndex drive, Bytes length) const {
  return lists_[ListOf(drive, length)].count;
}

}  // namespace sluice
