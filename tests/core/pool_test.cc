#include "core/pool.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>

#include "core/status.h"

namespace sluice {
namespace {

class Waiter : public BufferPool::Waiter {
 public:
  void OnBuffer(MemoryView given) override {
    SLUICE_CHECK(buffer.empty());
    buffer = given;
  }
  MemoryView buffer;
};

class PoolTest : public testing::Test {
 protected:
  std::vector<std::byte> memory_ = std::vector<std::byte>(350);
  BufferPool pool_{memory_, Bytes(100)};  // three buffers; what is left over is not used
};

TEST_F(PoolTest, LendsWhatFitsAndNoMore) {
  EXPECT_EQ(3u, pool_.count());
  EXPECT_EQ(3u, pool_.free_count());
  const MemoryView first = pool_.TryTake();
  EXPECT_EQ(memory_.data(), first.data()) << "the lowest first";
  EXPECT_EQ(100u, first.size());
  EXPECT_FALSE(pool_.TryTake().empty());
  EXPECT_FALSE(pool_.TryTake().empty());
  EXPECT_TRUE(pool_.TryTake().empty());
  EXPECT_EQ(3u, pool_.taken_max());
  pool_.Give(first);
  EXPECT_EQ(1u, pool_.free_count());
  EXPECT_EQ(3u, pool_.taken_max());
}

TEST_F(PoolTest, WaitersAreServedInOrderAndBeforeOthers) {
  std::vector<MemoryView> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(pool_.TryTake());
  Waiter waiters[3];
  for (Waiter& waiter : waiters) pool_.Take(&waiter);
  pool_.Cancel(&waiters[1]);
  pool_.Give(taken[0]);
  EXPECT_EQ(taken[0].data(), waiters[0].buffer.data());
  EXPECT_TRUE(pool_.TryTake().empty()) << "somebody waits";
  pool_.Give(taken[1]);
  EXPECT_TRUE(waiters[1].buffer.empty()) << "cancelled";
  EXPECT_EQ(taken[1].data(), waiters[2].buffer.data());
}

TEST_F(PoolTest, AWaiterIsServedAtOnceIfOneIsFree) {
  Waiter waiter;
  pool_.Take(&waiter);
  EXPECT_FALSE(waiter.buffer.empty());
}

TEST(EmptyPoolTest, LendsNothing) {
  BufferPool none;
  EXPECT_TRUE(none.TryTake().empty());
  std::vector<std::byte> memory(99);
  BufferPool too_small(memory, Bytes(100));
  EXPECT_EQ(0u, too_small.count());
  EXPECT_TRUE(too_small.TryTake().empty());
}

using PoolDeathTest = PoolTest;
TEST_F(PoolDeathTest, OnlyWhatWasLentMayBeGivenBack) {
  const MemoryView buffer = pool_.TryTake();
  EXPECT_DEATH(pool_.Give(buffer.first(99)), "check failed");
  EXPECT_DEATH(pool_.Give(MemoryView(memory_).subspan(1, 100)), "check failed");
  EXPECT_DEATH(pool_.Give(MemoryView(memory_).subspan(250, 100)), "check failed");
  std::vector<std::byte> foreign(100);
  EXPECT_DEATH(pool_.Give(foreign), "check failed");
  pool_.Give(buffer);
  EXPECT_DEATH(pool_.Give(buffer), "a buffer was given back twice");
}

// The pool against the simplest thing that does the same.
RC_GTEST_PROP(PoolPropertyTest, BehavesLikeItsModel, ()) {
  enum class Action { kTryTake, kTake, kGive, kCancel };
  const auto count = *rc::gen::inRange<size_t>(0, 5);
  const auto actions = *rc::gen::container<std::vector<std::pair<int, size_t>>>(
      rc::gen::pair(rc::gen::inRange(0, 4), rc::gen::inRange<size_t>(0, 1000)));
  std::vector<std::byte> memory(count * 16 + 7);
  BufferPool pool(memory, Bytes(16));
  std::vector<MemoryView> out;
  std::vector<std::unique_ptr<Waiter>> waiters;
  std::deque<Waiter*> waiting;
  size_t out_max = 0;
  for (const auto& [action, choice] : actions) {
    const bool free = out.size() < count && waiting.empty();
    switch (static_cast<Action>(action)) {
      case Action::kTryTake: {
        const MemoryView buffer = pool.TryTake();
        RC_ASSERT(buffer.empty() != free);
        if (free) out.push_back(buffer);
        break;
      }
      case Action::kTake: {
        waiters.push_back(std::make_unique<Waiter>());
        pool.Take(waiters.back().get());
        RC_ASSERT(waiters.back()->buffer.empty() != free);
        if (free) {
          out.push_back(waiters.back()->buffer);
        } else {
          waiting.push_back(waiters.back().get());
        }
        break;
      }
      case Action::kGive: {
        if (out.empty()) break;
        const size_t i = choice % out.size();
        const MemoryView given = out[i];
        out.erase(out.begin() + static_cast<ptrdiff_t>(i));
        pool.Give(given);
        if (waiting.empty()) break;
        RC_ASSERT(waiting.front()->buffer.data() == given.data());
        out.push_back(given);
        waiting.pop_front();
        break;
      }
      case Action::kCancel: {
        if (waiting.empty()) break;
        const size_t i = choice % waiting.size();
        pool.Cancel(waiting[i]);
        waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(i));
        break;
      }
    }
    out_max = std::max(out_max, out.size());
    RC_ASSERT(out.size() <= count);
    RC_ASSERT(pool.free_count() == count - out.size());
    RC_ASSERT(pool.taken_max() == out_max);
    std::vector<const std::byte*> starts;
    for (const MemoryView& buffer : out) starts.push_back(buffer.data());
    std::sort(starts.begin(), starts.end());
    RC_ASSERT(std::adjacent_find(starts.begin(), starts.end()) == starts.end());
  }
}

}  // namespace
}  // namespace sluice
