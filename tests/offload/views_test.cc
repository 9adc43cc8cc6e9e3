#include "offload/run/views.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory_resource.h"
#include "core/sim_memory.h"
#include "core/status.h"
#include "tests/core/waiting_inbox.h"

namespace sluice {
namespace {

class ViewsTest : public testing::Test {
 protected:
  ViewsTest() {
    auto arena = std::make_shared<Arena>(*Arena::Create(&counted_, KiB(64)));
    base_ = arena->memory().data();
    device_ = MakeHostDevice({}, &clock_, &memory_).value();
    views_ = std::make_unique<Views>(
        std::move(arena), device_.get(), waiting_.inbox(), [this] { ++freed_; },
        [](const absl::Status& status) { ADD_FAILURE() << status; });
  }

  DlManagedTensor* View(uint32_t unit) {
    const absl::StatusOr<DlManagedTensor*> view = views_->MakeView(UnitIndex(unit));
    SLUICE_CHECK_MSG(view.ok(), Message(view.status()));
    return *view;
  }
  // Until `n` times something has come out of use.
  void WaitForFreed(int n) {
    waiting_.HandleUntil([&] { return freed_ >= n; });
  }

  SimMemory memory_;
  LimitingResource counted_{&memory_, GiB(1)};
  SteadyClock clock_;
  WaitingInbox waiting_;
  std::unique_ptr<Device> device_;
  std::byte* base_ = nullptr;
  int freed_ = 0;
  std::unique_ptr<Views> views_;
};

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

// The host device, whose caller has streams that come to a point when the test says so.
class SteppedDevice final : public Device {
 public:
  explicit SteppedDevice(Device* real) : real_(real), points_(std::make_shared<Points>()) {}

  // `stream` runs what it holds.
  void Pass(CallerStream stream) {
    for (auto& [point, of] : points_->open) {
      if (of == stream) points_->complete.insert(point);
    }
    for (DeviceOp* op : std::exchange(waiting_, {})) Enqueue(op);
  }
  // Nobody may ask it any more.
  void Destroy(CallerStream stream) { destroyed_.push_back(stream); }
  void set_capturing(bool capturing) { capturing_ = capturing; }
  void Capture(CallerStream stream) { captured_ = stream; }

  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override { return real_->MakeHbmArena(size); }
  void Enqueue(DeviceOp* op) override {
    if (op->after != nullptr && !op->after->Complete()) return waiting_.push_back(op);
    op->after = nullptr;
    real_->Enqueue(op);
  }
  StreamCounts pending() const override { return real_->pending(); }
  void Abandon() override { real_->Abandon(); }
  bool host_addressable() const override { return real_->host_addressable(); }
  absl::Status RegisterHost(MemoryView memory) override { return real_->RegisterHost(memory); }
  absl::Status CheckStream(CallerStream) override { return absl::OkStatus(); }
  absl::StatusOr<Fence> RecordFence(CallerStream stream) override {
    EXPECT_EQ(destroyed_.end(), std::ranges::find(destroyed_, stream)) << "it is gone";
    if (capturing_ || stream == captured_)
      return absl::FailedPreconditionError("is being captured");
    points_->open.emplace_back(next_, stream);
    return Fence(points_, next_++);
  }
  DlDevice dl_device() const override { return real_->dl_device(); }
  std::string description() const override { return real_->description(); }

 private:
  struct Points final : FencePool {
    bool Complete(uint32_t point) override { return complete.contains(point); }
    void Return(uint32_t) override {}
    std::vector<std::pair<uint32_t, CallerStream>> open;
    std::set<uint32_t> complete;
  };
  Device* const real_;
  const std::shared_ptr<Points> points_;
  std::vector<DeviceOp*> waiting_;
  std::vector<CallerStream> destroyed_;
  bool capturing_ = false;
  std::optional<CallerStream> captured_;
  uint32_t next_ = 0;
};

class StreamsTest : public ViewsTest {
 protected:
  StreamsTest() {
    views_ = std::make_unique<Views>(
        std::make_shared<Arena>(*Arena::Create(&counted_, KiB(64))), &stepped_, waiting_.inbox(),
        [this] { ++freed_; }, [](const absl::Status& status) { ADD_FAILURE() << status; });
  }
  void Acquire(CallerStream stream) {
    views_->Show(kUnit, base_, 10, FloatType::kBf16, stream);
    ++acquired_;
  }
  void Release(CallerStream stream) {
    absl::StatusOr<Fences> fences = views_->RecordRelease(kUnit, stream);
    ASSERT_TRUE(fences.ok()) << fences.status();
    views_->HoldUntil(base_, *std::move(fences));
    if (--acquired_ == 0) views_->Hide(kUnit);
  }
  void Delete(DlManagedTensor* view) {
    view->deleter(view);
    views_->Settle();
  }
  // Whether the memory is in use until all of `streams` have passed, whichever is the last.
  void ExpectHeldUntilAllHavePassed(const std::vector<CallerStream>& streams) {
    for (CallerStream stream : streams) {
      waiting_.inbox()->HandleAll();
      EXPECT_TRUE(views_->InUse(base_)) << "before stream " << stream.handle;
      stepped_.Pass(stream);
    }
    waiting_.HandleUntil([&] { return !views_->fenced(); });
    EXPECT_FALSE(views_->InUse(base_));
  }

  static constexpr UnitIndex kUnit{0};
  int places_[3] = {};
  const CallerStream a_{&places_[0]}, b_{&places_[1]}, c_{&places_[2]};
  SteppedDevice stepped_{device_.get()};
  int acquired_ = 0;
};

// Each way in which two streams may come to use one view.
TEST_F(StreamsTest, AViewWaitsForEveryStreamThatAcquiredItsUnit) {
  for (const bool made_between : {false, true}) {
    for (const bool deleted_last : {false, true}) {
      for (const bool a_passes_last : {false, true}) {
        SCOPED_TRACE(testing::Message() << made_between << deleted_last << a_passes_last);
        DlManagedTensor* view = nullptr;
        Acquire(a_);
        if (made_between) view = View(0);
        Acquire(b_);
        if (!made_between) view = View(0);
        if (deleted_last) {
          Release(b_);
          Release(a_);
          stepped_.Pass(a_);  // what they held before the view died
          stepped_.Pass(b_);
        }
        Delete(view);
        if (!deleted_last) {
          Release(a_);
          Release(b_);
        }
        ExpectHeldUntilAllHavePassed(a_passes_last ? std::vector{b_, a_} : std::vector{a_, b_});
      }
    }
  }
}

TEST_F(StreamsTest, AViewThatOutlivesItsAcquisitionWaitsForThoseWhoAcquireLater) {
  Acquire(a_);
  DlManagedTensor* view = View(0);
  Release(a_);
  Acquire(b_);
  Acquire(c_);
  Release(b_);
  Release(c_);
  for (CallerStream stream : {a_, b_, c_}) stepped_.Pass(stream);
  Delete(view);
  ExpectHeldUntilAllHavePassed({c_, a_, b_});
}

TEST_F(StreamsTest, AReleaseWaitsForStreamsThatNobodyReleasedOn) {
  Acquire(a_);
  Acquire(b_);
  Release(b_);
  Release(b_);
  ExpectHeldUntilAllHavePassed({b_, a_});
}

TEST_F(StreamsTest, AReleaseAsksNoOtherStreamWhileOthersHaveTheUnit) {
  Acquire(a_);
  Acquire(b_);
  stepped_.Capture(b_);
  Release(a_);
  stepped_.Capture({});
  Release(b_);
  ExpectHeldUntilAllHavePassed({a_, b_});
}

TEST_F(StreamsTest, AStreamThatIsDoneWithItMayGo) {
  Acquire(a_);
  Acquire(b_);
  Release(a_);
  stepped_.Pass(a_);
  stepped_.Destroy(a_);
  DlManagedTensor* view = View(0);
  Release(b_);
  Delete(view);
  ExpectHeldUntilAllHavePassed({b_});
  stepped_.Destroy(b_);
  Acquire(c_);
  Delete(View(0));
  Release(c_);
  ExpectHeldUntilAllHavePassed({c_});
}

TEST_F(StreamsTest, WhileOneIsBeingCapturedNeitherIsForgotten) {
  Acquire(a_);
  Acquire(b_);
  DlManagedTensor* view = View(0);
  Release(a_);
  Release(b_);
  stepped_.Pass(a_);
  stepped_.Pass(b_);
  stepped_.set_capturing(true);
  Delete(view);
  waiting_.HandleUntil([this] { return !views_->fenced(); });
  EXPECT_TRUE(views_->InUse(base_));
  stepped_.set_capturing(false);
  views_->Settle();
  ExpectHeldUntilAllHavePassed({a_, b_});
}

}  // namespace
}  // namespace sluice
