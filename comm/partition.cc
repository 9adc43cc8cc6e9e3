#include "comm/partition.h"

#include "core/grid.h"

namespace sluice {

Partition::Partition(std::span<const RunTensor> tensors, uint32_t ranks)
    : tensors_(tensors.begin(), tensors.end()), shards_(ranks) {
  SLUICE_CHECK(ranks >= 1 && ranks <= kRanksMax);
  int64_t end = 0;
  int64_t elements = 0;
  for (const RunTensor& tensor : tensors_) {
    SLUICE_CHECK(tensor.offset >= end && tensor.elements >= 0 &&
                 tensor.elements <= kElementsMax - tensor.offset);
    end = tensor.offset + tensor.elements;
    before_.push_back(elements);
    elements += tensor.elements;
  }
  before_.push_back(elements);
  int64_t first = 0;
  for (uint32_t r = 0; r < ranks; ++r) {
    const int64_t last = CellStartNearest(r + 1, ranks);
    const int64_t begin = PlaceOf(first);
    shards_[r] = {{begin, last > first ? PlaceOf(last - 1) + 1 : begin}, last - first};
    first = last;
  }
}

int64_t Partition::CellStartNearest(uint32_t rank, uint32_t ranks) const {
  // No product here exceeds 2 * kRanksMax * kElementsMax = 2^61.
  if (rank == ranks) return elements();
  const int64_t whole = elements() * rank / ranks;  // rounded down
  if (whole == elements()) return whole;            // there are none
  const size_t tensor = TensorOf(whole);
  const int64_t into = whole - before_[tensor];
  const int64_t low = whole - into % kCellElements;
  const int64_t high = std::min(low + kCellElements, before_[tensor + 1]);
  return 2 * elements() * rank <= (low + high) * ranks ? low : high;
}

// The last of those that begin there: those before it are empty.
size_t Partition::TensorOf(int64_t element) const {
  const auto after = std::upper_bound(before_.begin(), before_.end() - 1, element);
  return static_cast<size_t>(after - before_.begin()) - 1;
}

int64_t Partition::PlaceOf(int64_t element) const {
  if (elements() == 0) return 0;
  if (element == elements()) return PlaceOf(element - 1) + 1;
  const size_t tensor = TensorOf(element);
  return tensors_[tensor].offset + element - before_[tensor];
}

}  // namespace sluice
