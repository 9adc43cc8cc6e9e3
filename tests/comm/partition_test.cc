#include "comm/partition.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <vector>

#include "core/grid.h"

namespace sluice {
namespace {

// Of every size that matters.
std::vector<int64_t> DrawSizes() {
  std::vector<int64_t> sizes;
  const auto count = *rc::gen::inRange(0, 9);
  for (int i = 0; i < count; ++i) {
    sizes.push_back(*rc::gen::oneOf(
        rc::gen::element<int64_t>(0, 1, 63, 64, 65, 4032, 4033, 4095, 4096, 4097, 8192, 12288),
        rc::gen::inRange<int64_t>(0, 200), rc::gen::inRange<int64_t>(0, 13'000),
        rc::gen::inRange<int64_t>(0, 60'000)));
  }
  return sizes;
}

uint32_t DrawRanks() {
  return *rc::gen::oneOf(rc::gen::element<uint32_t>(1, 2, 3, 4, 8, 64),
                         rc::gen::inRange<uint32_t>(1, 20));
}

struct Case {
  std::vector<int64_t> sizes = DrawSizes();
  uint32_t ranks = DrawRanks();
  uint32_t turn = *rc::gen::inRange<uint32_t>(0, 100);
  Partition partition{sizes, ranks, turn};

  // Who has each place of the run; -1: nobody.
  std::vector<int> Owners() const {
    std::vector<int> owners(static_cast<size_t>(partition.length()), -1);
    for (uint32_t r = 0; r < ranks; ++r) {
      const ElementRange shard = partition.shard(Rank(r));
      for (int64_t at = shard.begin; at < shard.end; ++at) {
        RC_ASSERT(owners.at(static_cast<size_t>(at)) == -1);
        owners[static_cast<size_t>(at)] = static_cast<int>(r);
      }
    }
    return owners;
  }
  // How many cells there would be at least, whoever places the tensors.
  int64_t ends() const {
    int64_t end = 0;
    for (size_t t = 0; t < sizes.size(); ++t) {
      if (sizes[t] > 0) end = partition.offset(t) + sizes[t];
    }
    return end;
  }
};

RC_GTEST_PROP(PartitionTest, TensorsLieInOrderAndCellsAreWhole, ()) {
  const Case c;
  int64_t end = 0, elements = 0;
  for (size_t t = 0; t < c.sizes.size(); ++t) {
    const int64_t offset = c.partition.offset(t);
    RC_ASSERT(offset >= end && offset % kTensorAlignment == 0);
    // No further than it must be.
    if (c.ranks == 1) RC_ASSERT(offset < end + kTensorAlignment);
    if (offset >= end + kTensorAlignment) {
      RC_ASSERT(offset % kCellElements == 0 && offset < end + kCellElements);
      const int64_t before = RoundUp(end, kTensorAlignment);
      RC_ASSERT(before + std::min(c.sizes[t], kCellElements) > offset);
    }
    for (int64_t cell = 0; c.ranks > 1 && cell < c.sizes[t]; cell += kCellElements) {
      const int64_t last = std::min(cell + kCellElements, c.sizes[t]) - 1;
      RC_ASSERT((offset + cell) / kCellElements == (offset + last) / kCellElements);
    }
    if (c.sizes[t] > 0) end = offset + c.sizes[t];
    elements += c.sizes[t];
  }
  RC_ASSERT(c.partition.elements() == elements);
  RC_ASSERT(c.partition.length() >= end && c.partition.length() % kTensorAlignment == 0);
}

RC_GTEST_PROP(PartitionTest, EveryPlaceHasOneOwnerAndEveryCellIsWholeWithIt, ()) {
  const Case c;
  const std::vector<int> owners = c.Owners();
  for (const int owner : owners) RC_ASSERT(owner >= 0);
  for (size_t t = 0; t < c.sizes.size(); ++t) {
    for (int64_t i = 0; i < c.sizes[t]; ++i) {
      const auto at = static_cast<size_t>(c.partition.offset(t) + i);
      if (i % kCellElements != 0) RC_ASSERT(owners[at] == owners[at - 1]);
    }
  }
}

RC_GTEST_PROP(PartitionTest, SharesAreEqual, ()) {
  const Case c;
  const int64_t length = RoundUp(c.ends(), kTensorAlignment);
  int64_t total = 0, least = c.partition.length(), most = 0;
  for (uint32_t r = 0; r < c.ranks; ++r) {
    const ElementRange shard = c.partition.shard(Rank(r));
    total += c.partition.elements(Rank(r));
    least = std::min(least, shard.size());
    most = std::max(most, shard.size());
    if (c.partition.equal()) RC_ASSERT(shard.begin == static_cast<int64_t>(r) * shard.size());
  }
  RC_ASSERT(total == c.partition.elements());
  if (c.partition.equal()) {
    RC_ASSERT(least == most);
    RC_ASSERT(c.partition.length() - length <= length / Partition::kPaddingShare);
  } else {
    RC_ASSERT(c.partition.length() == length);  // nothing is padded
    RC_ASSERT(most - least <= 2 * kCellElements);
    // Equal ones would have cost more than they may.
    const int64_t longest = (CellCount(length) + c.ranks - 1) / c.ranks * kCellElements;
    RC_ASSERT(longest * c.ranks - length > length / Partition::kPaddingShare || length == 0);
  }
}

RC_GTEST_PROP(PartitionTest, ARangeMeetsWhoHasSomethingInIt, ()) {
  const Case c;
  const std::vector<int> owners = c.Owners();
  const int64_t size = c.partition.length();
  const ElementRange range{*rc::gen::inRange<int64_t>(0, size + 100),
                           *rc::gen::inRange<int64_t>(0, size + 100)};
  std::vector<int> met(owners.size(), -1);
  int64_t end = 0;
  c.partition.ForShards(range, [&](Rank rank, ElementRange part) {
    RC_ASSERT(!part.empty() && part.begin >= std::max(end, range.begin) && part.end <= range.end);
    end = part.end;
    for (int64_t at = part.begin; at < part.end; ++at)
      met[static_cast<size_t>(at)] = static_cast<int>(rank.value());
  });
  for (int64_t at = 0; at < size; ++at) {
    const bool inside = at >= range.begin && at < range.end;
    RC_ASSERT(met[static_cast<size_t>(at)] == (inside ? owners[static_cast<size_t>(at)] : -1));
  }
}

RC_GTEST_PROP(PartitionTest, ARangeIsOfTensorsAsTheyLie, ()) {
  const Case c;
  const ElementRange range{*rc::gen::inRange<int64_t>(0, c.partition.length() + 100),
                           *rc::gen::inRange<int64_t>(0, c.partition.length() + 100)};
  std::vector<std::vector<bool>> met;
  for (const int64_t size : c.sizes) met.emplace_back(static_cast<size_t>(size));
  c.partition.ForTensors(range, [&](size_t tensor, ElementRange part) {
    RC_ASSERT(!part.empty());
    for (int64_t i = part.begin; i < part.end; ++i) {
      RC_ASSERT(!met[tensor].at(static_cast<size_t>(i)));
      met[tensor][static_cast<size_t>(i)] = true;
    }
  });
  for (size_t t = 0; t < c.sizes.size(); ++t) {
    for (int64_t i = 0; i < c.sizes[t]; ++i) {
      const int64_t at = c.partition.offset(t) + i;
      RC_ASSERT(met[t][static_cast<size_t>(i)] == (at >= range.begin && at < range.end));
    }
  }
}

std::vector<std::pair<int64_t, int64_t>> Shards(const Partition& partition) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (uint32_t r = 0; r < partition.ranks(); ++r)
    result.emplace_back(partition.shard(Rank(r)).begin, partition.shard(Rank(r)).end);
  return result;
}

TEST(PartitionTest, LongRunsArePaddedShortOnesAreNot) {
  using Pairs = std::vector<std::pair<int64_t, int64_t>>;
  const int64_t cell = kCellElements;
  const int64_t even[] = {2 * cell, 2 * cell};
  EXPECT_EQ((Pairs{{0, 2 * cell}, {2 * cell, 4 * cell}}), Shards(Partition(even, 2)));
  const int64_t odd[] = {3 * cell};  // a pad of one cell would be a third
  EXPECT_EQ((Pairs{{0, cell}, {cell, 3 * cell}}), Shards(Partition(odd, 2)));
  EXPECT_EQ((Pairs{{cell, 3 * cell}, {0, cell}}), Shards(Partition(odd, 2, 1)));
  EXPECT_EQ((Pairs{{cell, 3 * cell}, {0, cell}}), Shards(Partition(odd, 2, 7)));
  const int64_t long_odd[] = {63 * cell};
  const Partition padded(long_odd, 2, 1);
  EXPECT_EQ((Pairs{{0, 32 * cell}, {32 * cell, 64 * cell}}), Shards(padded));
  EXPECT_EQ(64 * cell, padded.length());
  EXPECT_EQ(31 * cell, padded.elements(Rank(1)));
  const int64_t little[] = {10};
  EXPECT_EQ((Pairs{{0, 0}, {0, 64}}), Shards(Partition(little, 2)));
  EXPECT_EQ((Pairs{{0, 64}, {0, 0}}), Shards(Partition(little, 2, 1)));
  EXPECT_EQ((Pairs{{0, 0}, {0, 0}}), Shards(Partition({}, 2)));
  EXPECT_EQ((Pairs{{0, 64}}), Shards(Partition(little, 1, 5)));
}

TEST(PartitionTest, TheSurplusOfManyShortRunsGoesAround) {
  const int64_t size[] = {100};
  std::vector<int64_t> elements(4);
  for (uint32_t unit = 0; unit < 40; ++unit) {
    const Partition partition(size, 4, unit);
    for (uint32_t r = 0; r < 4; ++r) elements[r] += partition.elements(Rank(r));
  }
  EXPECT_EQ((std::vector<int64_t>(4, 1000)), elements);
}

// No product overflows where both are as large as they may be.
TEST(PartitionTest, HoldsTheLargest) {
  const int64_t elements = Partition::kElementsMax - kCellElements;
  const Partition partition({&elements, 1}, kRanksMax);
  const int64_t each = Partition::kElementsMax / kRanksMax;
  EXPECT_TRUE(partition.equal());
  EXPECT_EQ(each, partition.elements(Rank(0)));
  EXPECT_EQ(each - kCellElements, partition.elements(Rank(kRanksMax - 1)));
  const int64_t few = 3 * kCellElements;
  const Partition mostly_empty({&few, 1}, kRanksMax);
  EXPECT_FALSE(mostly_empty.equal());
  EXPECT_EQ(kCellElements, mostly_empty.elements(Rank(kRanksMax - 1)));
}

TEST(PartitionDeathTest, WhatNoLayoutMakesIsABug) {
  const int64_t one[] = {10};
  EXPECT_DEATH(Partition(one, 0), "check failed");
  EXPECT_DEATH(Partition(one, kRanksMax + 1), "check failed");
  const int64_t negative[] = {-1};
  EXPECT_DEATH(Partition(negative, 2), "check failed");
  const int64_t large[] = {Partition::kElementsMax};
  EXPECT_DEATH(Partition(large, 2), "check failed");
}

}  // namespace
}  // namespace sluice
