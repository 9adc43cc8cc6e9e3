#include "core/types.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <type_traits>
#include <unordered_set>

#include "core/grid.h"

namespace sluice {
namespace {

static_assert(!std::is_convertible_v<int64_t, Bytes>);
static_assert(!std::is_convertible_v<Bytes, int64_t>);
static_assert(!std::is_convertible_v<uint32_t, UnitIndex>);
static_assert(!std::is_convertible_v<UnitIndex, TensorIndex>);
static_assert(!std::is_constructible_v<TensorIndex, UnitIndex>);
static_assert(sizeof(UnitIndex) == sizeof(uint32_t) && sizeof(Bytes) == sizeof(int64_t));

TEST(TypesTest, BytesAddAndScale) {
  EXPECT_EQ(MiB(3), KiB(1024) * 3);
  EXPECT_EQ(GiB(1) - MiB(1), 1023 * MiB(1));
  EXPECT_EQ(4, GiB(1) / MiB(256));
  EXPECT_EQ(KiB(1), MiB(1) / 1024);
  EXPECT_EQ(-1, (Bytes(1) - Bytes(2)).value());
  EXPECT_LT(KiB(1023), MiB(1));
  Bytes sum;
  sum += KiB(2);
  sum -= Bytes(48);
  EXPECT_EQ(2000u, sum.size());
}

RC_GTEST_PROP(TypesTest, RoundUpIsTheNextMultiple, ()) {
  const auto bytes = *rc::gen::inRange<int64_t>(0, int64_t{1} << 50);
  const auto alignment = *rc::gen::inRange<int64_t>(1, int64_t{1} << 30);
  const int64_t rounded = RoundUp(Bytes(bytes), Bytes(alignment)).value();
  RC_ASSERT(rounded % alignment == 0);
  RC_ASSERT(rounded >= bytes);
  RC_ASSERT(rounded - bytes < alignment);
}

TEST(TypesTest, IndicesCompareAndHash) {
  EXPECT_LT(UnitIndex(1), UnitIndex(2));
  const std::unordered_set<ChunkIndex> chunks = {ChunkIndex(1), ChunkIndex(2), ChunkIndex(1)};
  EXPECT_EQ(2u, chunks.size());
}

TEST(GridTest, TheLastCellMayBeShorter) {
  EXPECT_EQ(0, CellCount(0));
  EXPECT_EQ(1, CellCount(1));
  EXPECT_EQ(1, CellCount(4096));
  EXPECT_EQ(2, CellCount(4097));
  EXPECT_EQ(4, SizeOf(FloatType::kF32));
  EXPECT_EQ(2, SizeOf(FloatType::kBf16));
  EXPECT_EQ(2, SizeOf(FloatType::kF16));
}

}  // namespace
}  // namespace sluice
