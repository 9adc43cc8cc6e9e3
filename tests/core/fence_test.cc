#include "core/fence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

namespace sluice {
namespace {

using testing::ElementsAre;

class Pool final : public FencePool {
 public:
  bool Complete(uint32_t point) override { return complete.contains(point); }
  void Return(uint32_t point) override { returned.push_back(point); }
  std::set<uint32_t> complete;
  std::vector<uint32_t> returned;
};

TEST(FenceTest, OneThatWasNeverRecordedIsComplete) {
  const Fence fence;
  EXPECT_FALSE(fence.recorded());
  EXPECT_TRUE(fence.Complete());
}

TEST(FenceTest, IsCompleteWhenItsPointIs) {
  const auto pool = std::make_shared<Pool>();
  const Fence fence(pool, 7);
  EXPECT_TRUE(fence.recorded());
  EXPECT_EQ(7u, fence.point());
  EXPECT_FALSE(fence.Complete());
  pool->complete.insert(7);
  EXPECT_TRUE(fence.Complete());
}

TEST(FenceTest, ItsPointIsReturnedOnceWhoeverHasItLast) {
  const auto pool = std::make_shared<Pool>();
  {
    Fence first(pool, 1);
    Fence second = std::move(first);
    Fence third(pool, 3);
    third = std::move(second);
    EXPECT_EQ(1u, third.point());
  }
  EXPECT_THAT(pool->returned, testing::UnorderedElementsAre(1, 3));
}

TEST(FenceTest, KeepsItsPoolAlive) {
  auto pool = std::make_shared<Pool>();
  const std::weak_ptr<Pool> weak = pool;
  {
    const Fence fence(std::move(pool), 1);
    EXPECT_FALSE(weak.expired());
  }
  EXPECT_TRUE(weak.expired());
}

}  // namespace
}  // namespace sluice
