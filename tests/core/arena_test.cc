#include "core/arena.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <utility>

#include "core/sim_memory.h"
#include "core/status.h"

namespace sluice {
namespace {

class ArenaTest : public testing::Test {
 protected:
  SimMemory memory_;
  LimitingResource counted_{&memory_, GiB(1)};
};

TEST_F(ArenaTest, TakesExactlyItsSizeAndGivesItBack) {
  {
    const absl::StatusOr<Arena> arena = Arena::Create(&counted_, Bytes(12345));
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(Bytes(12345), arena->size());
    EXPECT_EQ(Bytes(12345), counted_.used());
  }
  EXPECT_EQ(Bytes(0), counted_.used());
}

TEST_F(ArenaTest, OfNothingTakesNothing) {
  absl::StatusOr<Arena> arena = Arena::Create(&counted_, Bytes(0));
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ(Bytes(0), counted_.used());
  EXPECT_FALSE(arena->Contains(nullptr));
  EXPECT_TRUE(arena->Carve(Bytes(0), KiB(4)).ok());
  EXPECT_FALSE(arena->Carve(Bytes(1), KiB(4)).ok());
}

TEST_F(ArenaTest, MovingHandsOn) {
  absl::StatusOr<Arena> first = Arena::Create(&counted_, KiB(8));
  ASSERT_TRUE(first.ok());
  std::byte* const data = first->memory().data();
  Arena second = *std::move(first);
  EXPECT_TRUE(second.Contains(data));
  EXPECT_FALSE(first->Contains(data));
  second = Arena();
  first = absl::CancelledError();
  EXPECT_EQ(Bytes(0), counted_.used());
}

TEST_F(ArenaTest, WhatDoesNotFitIsRefusedWithWhatIsLeft) {
  absl::StatusOr<Arena> arena = Arena::Create(&counted_, KiB(10));
  ASSERT_TRUE(arena.ok());
  ASSERT_TRUE(arena->Carve(KiB(5), KiB(1)).ok());
  const absl::Status status = arena->Carve(KiB(5), KiB(4)).status();  // from 8 KiB on
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ("5 KiB more do not fit an arena of 10 KiB, of which 5 KiB are taken", Message(status));
  EXPECT_EQ(KiB(5), arena->carved()) << "a refusal takes nothing";
  EXPECT_TRUE(arena->Carve(KiB(5), KiB(1)).ok());
  EXPECT_FALSE(arena->Carve(Bytes(-1), KiB(1)).ok());
}

TEST_F(ArenaTest, TheResourcesErrorIsPassedOn) {
  EXPECT_TRUE(absl::IsResourceExhausted(Arena::Create(&counted_, GiB(2)).status()));
}

using ArenaDeathTest = ArenaTest;
TEST_F(ArenaDeathTest, AlignmentsDivideTheArenas) {
  absl::StatusOr<Arena> arena = Arena::Create(&counted_, KiB(10));
  ASSERT_TRUE(arena.ok());
  EXPECT_DEATH((void)arena->Carve(KiB(1), Bytes(0)), "check failed");
  EXPECT_DEATH((void)arena->Carve(KiB(1), Bytes(3000)), "check failed");
}

RC_GTEST_PROP(ArenaPropertyTest, CarvingsAreAlignedInsideAndApart, ()) {
  SimMemory memory;
  absl::StatusOr<Arena> arena = Arena::Create(&memory, KiB(64));
  RC_ASSERT(arena.ok());
  const auto sizes = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, 9000));
  const std::byte* end = arena->memory().data();
  for (const int64_t size : sizes) {
    const Bytes alignment(int64_t{1} << *rc::gen::inRange(0, 13));
    const absl::StatusOr<MemoryView> view = arena->Carve(Bytes(size), alignment);
    if (!view.ok()) {
      RC_ASSERT(RoundUp(arena->carved(), alignment) + Bytes(size) > arena->size());
      continue;
    }
    RC_ASSERT(view->size() == static_cast<size_t>(size));
    RC_ASSERT(reinterpret_cast<uintptr_t>(view->data()) % alignment.size() == 0u);
    RC_ASSERT(view->data() >= end);
    RC_ASSERT(size == 0 || arena->Contains(view->data() + size - 1));
    end = view->data() + size;
  }
}

}  // namespace
}  // namespace sluice
