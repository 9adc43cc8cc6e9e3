#include "comm/partition.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/grid.h"

namespace sluice {
namespace {

// Tensors of every size that matters, with gaps or without.
std::vector<RunTensor> DrawTensors() {
  std::vector<RunTensor> tensors;
  int64_t end = *rc::gen::element<int64_t>(0, 0, 64, 5000);
  const bool gaps = *rc::gen::arbitrary<bool>();
  const auto count = *rc::gen::inRange(0, 7);
  for (int i = 0; i < count; ++i) {
    const auto elements =
        *rc::gen::oneOf(rc::gen::element<int64_t>(0, 1, 2, 4095, 4096, 4097, 8192, 12288),
                        rc::gen::inRange<int64_t>(0, 200), rc::gen::inRange<int64_t>(0, 13'000));
    tensors.push_back({end, elements});
    end += elements + (gaps ? *rc::gen::inRange<int64_t>(0, 64) : 0);
  }
  return tensors;
}

uint32_t DrawRanks() {
  return *rc::gen::oneOf(rc::gen::element<uint32_t>(1, 2, 3, 4, 8, 64),
                         rc::gen::inRange<uint32_t>(1, 20));
}

// The rule of partition.h, element by element: who has what, by the element's place in the run;
// -1: nobody, it is a gap.
class Oracle {
 public:
  Oracle(const std::vector<RunTensor>& tensors, uint32_t ranks) {
    std::vector<int64_t> starts;  // of cells, counted without gaps
    for (const RunTensor& tensor : tensors) {
      for (int64_t i = 0; i < tensor.elements; ++i) {
        if (i % kCellElements == 0) starts.push_back(static_cast<int64_t>(places_.size()));
        places_.push_back(tensor.offset + i);
      }
    }
    const auto elements = static_cast<int64_t>(places_.size());
    starts.push_back(elements);
    std::vector<int64_t> begins;
    for (uint32_t r = 0; r <= ranks; ++r) {
      // Distances times the number of ranks are whole numbers.
      const auto distance = [&](int64_t start) { return std::abs(start * ranks - r * elements); };
      begins.push_back(*std::ranges::min_element(starts, {}, distance));
    }
    begins.back() = elements;
    owners_.assign(places_.empty() ? 0 : static_cast<size_t>(places_.back()) + 1, -1);
    for (uint32_t r = 0; r < ranks; ++r) {
      for (int64_t i = begins[r]; i < begins[r + 1]; ++i)
        owners_[static_cast<size_t>(places_[static_cast<size_t>(i)])] = static_cast<int>(r);
    }
  }

  const std::vector<int>& owners() const { return owners_; }
  int64_t elements() const { return static_cast<int64_t>(places_.size()); }
  // By rank, in the run; empty if it has none.
  std::vector<std::vector<int64_t>> PlacesByRank(uint32_t ranks) const {
    std::vector<std::vector<int64_t>> places(ranks);
    for (const int64_t place : places_)
      places[static_cast<size_t>(owners_[static_cast<size_t>(place)])].push_back(place);
    return places;
  }

 private:
  std::vector<int64_t> places_;  // of elements
  std::vector<int> owners_;
};

RC_GTEST_PROP(PartitionTest, EveryElementIsWhereTheRuleSays, ()) {
  const std::vector<RunTensor> tensors = DrawTensors();
  const uint32_t ranks = DrawRanks();
  const Partition partition(tensors, ranks);
  const Oracle oracle(tensors, ranks);
  RC_ASSERT(partition.ranks() == ranks);
  RC_ASSERT(partition.elements() == oracle.elements());
  const std::vector<std::vector<int64_t>> by_rank = oracle.PlacesByRank(ranks);
  int64_t end = 0;
  for (uint32_t r = 0; r < ranks; ++r) {
    const std::vector<int64_t>& places = by_rank[r];
    const ElementRange shard = partition.shard(Rank(r));
    RC_ASSERT(partition.elements(Rank(r)) == static_cast<int64_t>(places.size()));
    RC_ASSERT(shard.empty() == places.empty());
    RC_ASSERT(shard.begin >= end && shard.end >= shard.begin);
    end = shard.end;
    if (places.empty()) continue;
    RC_ASSERT(shard.begin == places.front());
    RC_ASSERT(shard.end == places.back() + 1);
    for (int64_t at = shard.begin; at < shard.end; ++at) {
      const int owner = oracle.owners()[static_cast<size_t>(at)];
      RC_ASSERT(owner == static_cast<int>(r) || owner == -1);
    }
  }
}

RC_GTEST_PROP(PartitionTest, SharesAreEqualWithinOneCell, ()) {
  const std::vector<RunTensor> tensors = DrawTensors();
  const uint32_t ranks = DrawRanks();
  const Partition partition(tensors, ranks);
  int64_t total = 0, least = partition.elements(), most = 0;
  for (uint32_t r = 0; r < ranks; ++r) {
    const int64_t own = partition.elements(Rank(r));
    total += own;
    least = std::min(least, own);
    most = std::max(most, own);
    RC_ASSERT(std::abs(own * ranks - partition.elements()) <= kCellElements * ranks);
  }
  RC_ASSERT(total == partition.elements());
  const bool whole = std::ranges::all_of(
      tensors, [](const RunTensor& tensor) { return tensor.elements % kCellElements == 0; });
  if (whole) RC_ASSERT(most - least <= kCellElements);
}

RC_GTEST_PROP(PartitionTest, ARangeMeetsWhoHasSomethingInIt, ()) {
  const std::vector<RunTensor> tensors = DrawTensors();
  const uint32_t ranks = DrawRanks();
  const Partition partition(tensors, ranks);
  const Oracle oracle(tensors, ranks);
  const auto size = static_cast<int64_t>(oracle.owners().size());
  const ElementRange range{*rc::gen::inRange<int64_t>(0, size + 100),
                           *rc::gen::inRange<int64_t>(0, size + 100)};
  std::vector<int> owners(oracle.owners().size(), -1);
  int64_t end = 0;
  partition.ForShards(range, [&](Rank rank, ElementRange part) {
    RC_ASSERT(!part.empty() && part.begin >= std::max(end, range.begin) && part.end <= range.end);
    RC_ASSERT(Intersection(partition.shard(rank), part) == part);
    end = part.end;
    for (int64_t at = part.begin; at < part.end; ++at)
      owners[static_cast<size_t>(at)] = static_cast<int>(rank.value());
  });
  for (int64_t at = 0; at < size; ++at) {
    const int owner = oracle.owners()[static_cast<size_t>(at)];
    if (owner == -1) continue;
    const bool inside = at >= range.begin && at < range.end;
    RC_ASSERT(owners[static_cast<size_t>(at)] == (inside ? owner : -1));
  }
}

RC_GTEST_PROP(PartitionTest, ARangeIsOfTensorsAsTheyLie, ()) {
  const std::vector<RunTensor> tensors = DrawTensors();
  const Partition partition(tensors, 1);
  const int64_t size = tensors.empty() ? 0 : tensors.back().offset + tensors.back().elements;
  const ElementRange range{*rc::gen::inRange<int64_t>(0, size + 100),
                           *rc::gen::inRange<int64_t>(0, size + 100)};
  std::vector<std::vector<bool>> met;
  for (const RunTensor& tensor : tensors) met.emplace_back(static_cast<size_t>(tensor.elements));
  partition.ForTensors(range, [&](size_t tensor, ElementRange part) {
    RC_ASSERT(!part.empty());
    for (int64_t i = part.begin; i < part.end; ++i) {
      RC_ASSERT(!met[tensor].at(static_cast<size_t>(i)));
      met[tensor][static_cast<size_t>(i)] = true;
    }
  });
  for (size_t t = 0; t < tensors.size(); ++t) {
    for (int64_t i = 0; i < tensors[t].elements; ++i) {
      const int64_t at = tensors[t].offset + i;
      RC_ASSERT(met[t][static_cast<size_t>(i)] == (at >= range.begin && at < range.end));
    }
  }
}

RC_GTEST_PROP(PartitionTest, MovesBringEveryElementToItsNewRank, ()) {
  const std::vector<RunTensor> tensors = DrawTensors();
  const uint32_t ranks[] = {DrawRanks(), DrawRanks()};
  const Partition from(tensors, ranks[0]), to(tensors, ranks[1]);
  const Oracle before(tensors, ranks[0]), after(tensors, ranks[1]);
  std::vector<int> moved(before.owners().size(), 0);
  ForMoves(from, to, [&](Rank source, Rank target, ElementRange part) {
    RC_ASSERT(!part.empty());
    for (int64_t i = part.begin; i < part.end; ++i) {
      const auto at = static_cast<size_t>(i);
      if (before.owners()[at] == -1) continue;
      RC_ASSERT(before.owners()[at] == static_cast<int>(source.value()));
      RC_ASSERT(after.owners()[at] == static_cast<int>(target.value()));
      ++moved[at];
    }
  });
  for (size_t at = 0; at < moved.size(); ++at)
    RC_ASSERT(moved[at] == (before.owners()[at] == -1 ? 0 : 1));
}

TEST(PartitionTest, BoundariesAreAtTheNearestCell) {
  const auto shards = [](std::vector<RunTensor> tensors, uint32_t ranks) {
    std::vector<std::pair<int64_t, int64_t>> result;
    const Partition partition(tensors, ranks);
    for (uint32_t r = 0; r < ranks; ++r)
      result.emplace_back(partition.shard(Rank(r)).begin, partition.shard(Rank(r)).end);
    return result;
  };
  using Shards = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ((Shards{{0, 8192}, {8192, 16384}}), shards({{0, 16384}}, 2));
  EXPECT_EQ((Shards{{0, 4096}, {4096, 12288}}), shards({{0, 12288}}, 2)) << "the lower of two";
  EXPECT_EQ((Shards{{0, 0}, {0, 10}}), shards({{0, 10}}, 2)) << "less than a cell";
  EXPECT_EQ((Shards{{0, 0}, {0, 0}}), shards({{0, 0}}, 2));
  EXPECT_EQ((Shards{{0, 0}, {0, 0}}), shards({}, 2));
  EXPECT_EQ((Shards{{0, 10}, {64, 74}, {128, 138}}), shards({{0, 10}, {64, 10}, {128, 10}}, 3))
      << "a tensor begins a cell, and gaps count for nothing";
}

// No product overflows where both are as large as they may be.
TEST(PartitionTest, HoldsTheLargest) {
  const int64_t elements = Partition::kElementsMax;
  const RunTensor tensor{0, elements};
  const Partition partition({&tensor, 1}, kRanksMax);
  const int64_t each = elements / kRanksMax;
  EXPECT_EQ(each, partition.elements(Rank(0)));
  EXPECT_EQ((ElementRange{elements - each, elements}), partition.shard(Rank(kRanksMax - 1)));
}

TEST(PartitionDeathTest, WhatNoLayoutMakesIsABug) {
  const RunTensor overlapping[] = {{0, 10}, {9, 10}};
  EXPECT_DEATH(Partition(overlapping, 2), "check failed");
  const RunTensor one[] = {{0, 10}};
  EXPECT_DEATH(Partition(one, 0), "check failed");
  EXPECT_DEATH(Partition(one, kRanksMax + 1), "check failed");
  const RunTensor negative[] = {{0, -1}};
  EXPECT_DEATH(Partition(negative, 2), "check failed");
}

}  // namespace
}  // namespace sluice
