// comm/partition.h
//
// What each rank keeps of a unit, or of a single tensor. Pure arithmetic over elements: it knows no
// types, bytes, states or memory.
//
// A unit is a run of elements: its tensors one after the other, each at an offset of its own; gaps
// between them (they align tensors) hold no elements and are counted nowhere. Every tensor is cut
// into the cells of the canonical grid (core/grid.h), the last one shorter. A rank's shard is a
// contiguous piece of the run, made of whole cells: with E elements and N ranks, shard r begins at
// the start of a cell (or the run's end) that is nearest to the r * E / N-th element, the lower of
// two as near; it ends where shard r + 1 begins. So
// - a shard has E / N elements, give or take one cell at most; where all cells are whole, shards
//   differ by one cell at most;
// - with more ranks than cells some ranks have nothing, and an empty unit has nothing anywhere;
// - gathered in rank order, shards are the run itself: no copy puts them in place.
// This rule is part of what a checkpoint means, so it stays.
//
// Threads: any, after the construction, which is all that allocates.

#ifndef SLUICE_COMM_PARTITION_H_
#define SLUICE_COMM_PARTITION_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/rank.h"
#include "core/status.h"

namespace sluice {

// Elements [begin, end).
struct ElementRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  bool empty() const { return begin >= end; }
  friend bool operator==(const ElementRange&, const ElementRange&) = default;
};

constexpr ElementRange Intersection(ElementRange a, ElementRange b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Where a tensor lies in its unit's run.
struct RunTensor {
  int64_t offset = 0;
  int64_t elements = 0;  // may be 0

  friend bool operator==(const RunTensor&, const RunTensor&) = default;
};

class Partition {
 public:
  static constexpr int64_t kElementsMax = int64_t{1} << 44;

  // `tensors` are in the order of their offsets and don't overlap; 1 <= `ranks` <= kRanksMax;
  // the run ends by kElementsMax. All of these are checked.
  Partition(std::span<const RunTensor> tensors, uint32_t ranks);

  uint32_t ranks() const { return static_cast<uint32_t>(shards_.size()); }
  std::span<const RunTensor> tensors() const { return tensors_; }

  // Without gaps: of all ranks, and of one.
  int64_t elements() const { return before_.back(); }
  int64_t elements(Rank rank) const { return shards_[rank.value()].elements; }

  // From the first of the rank's elements to the last, as places in the run; gaps amid them are in
  // it. Of a rank that has nothing it is empty and lies where the shard would.
  ElementRange shard(Rank rank) const { return shards_[rank.value()].place; }

  // f(Rank, ElementRange): the parts of `range`, places in the run, that are in shards, in order.
  template <typename F>
  void ForShards(ElementRange range, F&& f) const {
    auto shard = std::partition_point(shards_.begin(), shards_.end(), [&](const Shard& candidate) {
      return candidate.place.end <= range.begin;
    });
    for (; shard != shards_.end() && shard->place.begin < range.end; ++shard) {
      const ElementRange part = Intersection(shard->place, range);
      if (!part.empty()) f(Rank(static_cast<uint32_t>(shard - shards_.begin())), part);
    }
  }

  // f(size_t tensor, ElementRange): the parts of tensors that lie in `range`, places in the run, in
  // order; each part as elements of its tensor.
  template <typename F>
  void ForTensors(ElementRange range, F&& f) const {
    auto tensor =
        std::partition_point(tensors_.begin(), tensors_.end(), [&](const RunTensor& candidate) {
          return candidate.offset + candidate.elements <= range.begin;
        });
    for (; tensor != tensors_.end() && tensor->offset < range.end; ++tensor) {
      const ElementRange part =
          Intersection({tensor->offset, tensor->offset + tensor->elements}, range);
      if (part.empty()) continue;
      f(static_cast<size_t>(tensor - tensors_.begin()),
        ElementRange{part.begin - tensor->offset, part.end - tensor->offset});
    }
  }

 private:
  struct Shard {
    ElementRange place;
    int64_t elements = 0;
  };

  // Both count elements without gaps.
  int64_t CellStartNearest(uint32_t rank, uint32_t ranks) const;
  size_t TensorOf(int64_t element) const;
  int64_t PlaceOf(int64_t element) const;  // of the run's end too

  std::vector<RunTensor> tensors_;
  std::vector<int64_t> before_;  // by tensor: elements of those before it; at last those of all
  std::vector<Shard> shards_;
};

// What moves where when another number of ranks shares the same unit: f(Rank from, Rank to,
// ElementRange), places in the run, for every piece that is in a shard of both, in order. Together
// they are all elements, each once. Precondition: the tensors are the same.
template <typename F>
void ForMoves(const Partition& from, const Partition& to, F&& f) {
  SLUICE_CHECK(std::ranges::equal(from.tensors(), to.tensors()));
  for (uint32_t r = 0; r < from.ranks(); ++r) {
    to.ForShards(from.shard(Rank(r)),
                 [&](Rank rank, ElementRange part) { f(Rank(r), rank, part); });
  }
}

}  // namespace sluice

#endif  // SLUICE_COMM_PARTITION_H_
