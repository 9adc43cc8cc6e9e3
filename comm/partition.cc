#include "comm/partition.h"

#include "core/status.h"

namespace sluice {

Partition::Partition(std::span<const int64_t> sizes, uint32_t ranks, uint32_t turn)
    : ranks_(ranks), turn_(turn % std::max(ranks, 1u)) {
  SLUICE_CHECK(ranks >= 1 && ranks <= kRanksMax);
  tensors_.reserve(sizes.size());
  int64_t end = 0;
  for (const int64_t elements : sizes) {
    SLUICE_CHECK(elements >= 0 && elements <= kElementsMax - kCellElements - end);
    int64_t offset = RoundUp(end, kTensorAlignment);
    const int64_t left = kCellElements - offset % kCellElements;
    if (ranks > 1 && left < std::min(elements, kCellElements)) offset += left;
    tensors_.push_back({.offset = offset, .elements = elements});
    if (elements > 0) end = offset + elements;
    elements_ += elements;
  }
  length_ = RoundUp(end, kTensorAlignment);
  if (ranks == 1 || length_ == 0) {
    shard_length_ = length_;
    return;
  }
  const int64_t longest = (CellCount(length_) + ranks - 1) / ranks * kCellElements;
  const int64_t padded = longest * ranks;
  if (padded - length_ > length_ / kPaddingShare || padded > kElementsMax) return;
  shard_length_ = longest;
  length_ = padded;
}

int64_t Partition::Boundary(uint32_t index) const {
  if (equal()) return shard_length_ * index;
  // No product exceeds kElementsMax / kCellElements * kRanksMax = 2^50.
  return std::min(length_, CellCount(length_) * index / ranks_ * kCellElements);
}

uint32_t Partition::IndexOf(int64_t place) const {
  if (equal()) return static_cast<uint32_t>(place / shard_length_);
  uint32_t first = 0, last = ranks_;  // Boundary(first) <= place, and not so of last
  while (last - first > 1) {
    const uint32_t middle = first + (last - first) / 2;
    (Boundary(middle) <= place ? first : last) = middle;
  }
  return first;
}

int64_t Partition::elements(Rank rank) const {
  int64_t elements = 0;
  ForTensors(shard(rank), [&](size_t /*tensor*/, ElementRange part) { elements += part.size(); });
  return elements;
}

}  // namespace sluice
