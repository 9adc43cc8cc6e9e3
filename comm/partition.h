// comm/partition.h
//
// Where the tensors of a run lie, and what of it each rank keeps. Pure arithmetic over elements: it
// knows no types, bytes, states or memory.
//
// A run is a sequence of tensors, each cut into the cells of the canonical grid (core/grid.h), the
// last one shorter. They lie one after the other, each at the next multiple of kTensorAlignment.
// Among several ranks no cell may lie across a multiple of kCellElements of the run: a tensor whose
// would begins at the next one. So every multiple of kCellElements parts whole cells, and between
// those a rank's shard is cut: a contiguous piece of the run.
//
// - Equal shards, where that costs at most one place in kPaddingShare: each is as long as the
//   longest must be, and the run is padded at its end to a multiple of that. Gathered in rank
//   order, equal pieces are the run itself, which is what collectives do fastest.
// - Else, for runs that are short beside the number of ranks: with C cells, shard r begins at cell
//   C r / N, rounded down, nothing is padded, and shard r is the rank's that is `turn` further, so
//   that of many short runs every rank has its part.
//
// Places that hold no element (gaps, padding) are counted nowhere, and reach no norm and no
// checkpoint. This rule is part of what a checkpoint means, so it stays.
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
#include "core/grid.h"

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

class Partition {
 public:
  static constexpr int64_t kElementsMax = int64_t{1} << 46;  // places, padding included
  static constexpr int64_t kPaddingShare = 32;

  // `sizes`: elements of each tensor, in order; may be 0. 1 <= `ranks` <= kRanksMax; no run is
  // longer than kElementsMax. All of these are checked.
  explicit Partition(std::span<const int64_t> sizes, uint32_t ranks = 1, uint32_t turn = 0);
  Partition() : Partition(std::span<const int64_t>()) {}

  uint32_t ranks() const { return ranks_; }
  int64_t elements() const { return elements_; }  // without gaps
  // Places: a multiple of kTensorAlignment, and of equal shards of their number.
  int64_t length() const { return length_; }
  bool equal() const { return shard_length_ > 0; }

  int64_t offset(size_t tensor) const { return tensors_[tensor].offset; }

  // Places in the run. One that is empty lies where it would.
  ElementRange shard(Rank rank) const {
    const uint32_t index = equal() ? rank.value() : (rank.value() + ranks_ - turn_) % ranks_;
    return {Boundary(index), Boundary(index + 1)};
  }
  int64_t elements(Rank rank) const;  // of its shard, without gaps

  // f(Rank, ElementRange): the parts of `range`, places in the run, that are in shards, in order.
  template <typename F>
  void ForShards(ElementRange range, F&& f) const {
    range = Intersection(range, {0, length_});
    if (range.empty()) return;
    for (uint32_t index = IndexOf(range.begin); index < ranks_; ++index) {
      const ElementRange part = Intersection({Boundary(index), Boundary(index + 1)}, range);
      if (!part.empty()) f(Rank(equal() ? index : (index + turn_) % ranks_), part);
      if (Boundary(index + 1) >= range.end) return;
    }
  }

  // f(size_t tensor, ElementRange): the parts of tensors that lie in `range`, places in the run, in
  // order; each part as elements of its tensor.
  template <typename F>
  void ForTensors(ElementRange range, F&& f) const {
    auto tensor = std::ranges::partition_point(tensors_, [&](const Tensor& candidate) {
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
  struct Tensor {
    int64_t offset;
    int64_t elements;
  };

  // Where shard `index` begins, in the order of the run; of `ranks`, its end.
  int64_t Boundary(uint32_t index) const;
  // The last shard that begins at or before the place.
  uint32_t IndexOf(int64_t place) const;

  std::vector<Tensor> tensors_;
  uint32_t ranks_;
  uint32_t turn_;
  int64_t elements_ = 0;
  int64_t length_ = 0;
  int64_t shard_length_ = 0;  // of equal shards
};

}  // namespace sluice

#endif  // SLUICE_COMM_PARTITION_H_
