#include "offload/run/views.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "tests/offload/views_fixture.h"

namespace sluice {
namespace {

TEST_F(ViewsTest, AViewSaysWhereWhatAndHowMuch) {
  views_->Show(UnitIndex(3), base_ + 4096, 1000, FloatType::kBf16, {});
  DlManagedTensor* view = View(3);
  const DlTensor& t = view->dl_tensor;
  EXPECT_EQ(base_ + 4096, static_cast<std::byte*>(t.data) + t.byte_offset);
  EXPECT_EQ(1, t.device.device_type) << "a CPU's memory";
  EXPECT_EQ(4, t.dtype.code) << "bfloat";
  EXPECT_EQ(16, t.dtype.bits);
  EXPECT_EQ(1, t.dtype.lanes);
  ASSERT_EQ(1, t.ndim);
  EXPECT_EQ(1000, t.shape[0]);
  EXPECT_EQ(nullptr, t.strides) << "compact";
  view->deleter(view);
}

TEST_F(ViewsTest, OnlyWhatIsShownCanBeViewed) {
  EXPECT_TRUE(absl::IsFailedPrecondition(views_->MakeView(UnitIndex(0)).status()));
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  EXPECT_TRUE(views_->Shown(UnitIndex(0)));
  EXPECT_FALSE(views_->Shown(UnitIndex(1)));
  EXPECT_TRUE(views_->RecordRelease(UnitIndex(0), {}).ok());
  views_->Hide(UnitIndex(0));
  EXPECT_FALSE(views_->Shown(UnitIndex(0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(views_->MakeView(UnitIndex(0)).status()));
}

TEST_F(ViewsTest, MemoryIsInUseWhileAnyViewOfItLives) {
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  EXPECT_FALSE(views_->InUse(base_));
  DlManagedTensor* first = View(0);
  DlManagedTensor* second = View(0);
  EXPECT_TRUE(views_->RecordRelease(UnitIndex(0), {}).ok());
  views_->Hide(UnitIndex(0));
  EXPECT_TRUE(views_->InUse(base_)) << "released, but viewed";
  EXPECT_FALSE(views_->InUse(base_ + 4096));
  first->deleter(first);
  EXPECT_TRUE(views_->InUse(base_));
  EXPECT_EQ(0, freed_);
  second->deleter(second);
  WaitForFreed(1);
  EXPECT_FALSE(views_->InUse(base_));
}

TEST_F(ViewsTest, ADeleterMayRunOnAnyThread) {
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  views_->Show(UnitIndex(1), base_ + 4096, 10, FloatType::kBf16, {});
  for (int round = 0; round < 50; ++round) {
    const int before = freed_;
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 4; ++i) {
      threads.emplace_back([view = View(i % 2)] { view->deleter(view); });
    }
    waiting_.HandleUntil(
        [&] { return freed_ > before && !views_->InUse(base_) && !views_->InUse(base_ + 4096); });
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_F(ViewsTest, ManyThreadsMakeAndDeleteViews) {
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  DlManagedTensor* last = View(0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this] {
      for (int i = 0; i < 500; ++i) {
        DlManagedTensor* view = View(0);
        view->deleter(view);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(views_->InUse(base_));
  last->deleter(last);
  waiting_.HandleUntil([&] { return !views_->InUse(base_); });
}

// Deaths that nobody waits for are only remembered; who begins to wait sees those before.
TEST_F(ViewsTest, ADeathWakesNobodyWhileItIsNotHeeded) {
  std::atomic<bool> heeded{false};
  MakeViews(&heeded);
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  for (int round = 0; round < 3; ++round) {
    EXPECT_FALSE(views_->died_quietly());
    DlManagedTensor* view = View(0);
    view->deleter(view);
    EXPECT_TRUE(waiting_.inbox()->empty());
    EXPECT_TRUE(views_->died_quietly());
    EXPECT_TRUE(views_->dying());
    EXPECT_TRUE(views_->InUse(base_));
    views_->Settle();
    EXPECT_FALSE(views_->InUse(base_));
  }
  heeded = true;
  DlManagedTensor* view = View(0);
  view->deleter(view);
  EXPECT_FALSE(waiting_.inbox()->empty());
  WaitForFreed(4);
}

// However the two race, either the death is told or who waits sees it.
TEST_F(ViewsTest, ADeathIsNeverMissedByWhoBeginsToHeed) {
  std::atomic<bool> heeded{false};
  MakeViews(&heeded);
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  for (int round = 0; round < 2000; ++round) {
    heeded = false;
    DlManagedTensor* view = View(0);
    std::thread caller([view] { view->deleter(view); });
    heeded = true;
    const bool seen = views_->died_quietly();
    caller.join();
    EXPECT_TRUE(seen || !waiting_.inbox()->empty());
    waiting_.inbox()->HandleAll();
    views_->Settle();
  }
}

// A posted event is in the inbox until it is handled, also if somebody has settled meanwhile.
TEST_F(ViewsTest, ADeathThatWasSettledBeforeItsEventIsHandledIsNotPostedTwice) {
  struct Other final : Event {
    void Handle() override { ++handled; }
    int handled = 0;
  } other;
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  views_->Show(UnitIndex(1), base_ + 4096, 10, FloatType::kBf16, {});
  DlManagedTensor* first = View(0);
  DlManagedTensor* second = View(1);
  first->deleter(first);
  waiting_.inbox()->Post(&other);
  views_->Settle();
  EXPECT_EQ(1, freed_);
  second->deleter(second);
  waiting_.inbox()->HandleAll();
  EXPECT_EQ(1, other.handled);
  EXPECT_EQ(2, freed_);
}

TEST_F(ViewsTest, AViewKeepsItsMemoryBeyondTheRuntimesEnd) {
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  DlManagedTensor* view = View(0);
  views_.reset();
  EXPECT_EQ(KiB(64), counted_.used());
  std::fill_n(static_cast<std::byte*>(view->dl_tensor.data), 20, std::byte{1});
  std::thread([view] { view->deleter(view); }).join();
  EXPECT_EQ(Bytes(0), counted_.used()) << "the last view gives it back";
}

TEST_F(ViewsTest, WithoutViewsTheMemoryGoesWithTheRuntime) {
  views_.reset();
  EXPECT_EQ(Bytes(0), counted_.used());
}

TEST_F(ViewsTest, InAForkedChildADeleterDoesNothing) {
  views_->Show(UnitIndex(0), base_, 10, FloatType::kBf16, {});
  DlManagedTensor* view = View(0);
  const pid_t child = fork();
  if (child == 0) {
    view->deleter(view);
    _exit(views_->InUse(base_) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_TRUE(views_->InUse(base_));
  view->deleter(view);
}

}  // namespace
}  // namespace sluice
