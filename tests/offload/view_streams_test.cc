// What is viewed stays until the streams that may read it have passed, whichever these are.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/offload/views_fixture.h"

namespace sluice {
namespace {

// The host device, whose caller has streams that come to a point when the test says so.
class SteppedDevice final : public Device {
 public:
  explicit SteppedDevice(Device* real) : real_(real), points_(std::make_shared<Points>()) {}

  // `stream` runs what it holds.
  void Pass(CallerStream stream) {
    for (auto& [point, of] : points_->open) {
      if (of == stream) points_->complete.insert(point);
    }
    for (const Waiting& waiting : std::exchange(waiting_, {})) EnqueueAfter(waiting);
  }
  // Nobody may ask it any more.
  void Destroy(CallerStream stream) { destroyed_.push_back(stream); }
  void set_capturing(bool capturing) { capturing_ = capturing; }
  void Capture(CallerStream stream) { captured_ = stream; }
  // What happens while the next point is recorded.
  void Meanwhile(std::function<void()> meanwhile) { meanwhile_ = std::move(meanwhile); }

  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override { return real_->MakeHbmArena(size); }
  void Enqueue(DeviceOp* op) override { EnqueueAfter({op, std::exchange(after_, {})}); }
  void OrderAfter(StreamKind, const Fence& fence) override { after_.push_back(fence.point()); }
  bool orders_callers() const override { return false; }
  absl::StatusOr<Fence> RecordEnd(StreamKind stream) override { return real_->RecordEnd(stream); }
  absl::Status OrderCallerAfter(CallerStream stream, const Fence& fence) override {
    return real_->OrderCallerAfter(stream, fence);
  }
  StreamCounts pending() const override { return real_->pending(); }
  void Abandon() override { real_->Abandon(); }
  bool host_addressable() const override { return real_->host_addressable(); }
  absl::Status RegisterHost(MemoryView memory) override { return real_->RegisterHost(memory); }
  absl::Status CheckStream(CallerStream) override { return absl::OkStatus(); }
  absl::StatusOr<Fence> RecordFence(CallerStream stream) override {
    EXPECT_EQ(destroyed_.end(), std::ranges::find(destroyed_, stream)) << "it is gone";
    if (meanwhile_) std::exchange(meanwhile_, nullptr)();
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
  struct Waiting {
    DeviceOp* op;
    std::vector<uint32_t> points;
  };
  void EnqueueAfter(const Waiting& what) {
    const auto complete = [this](uint32_t point) { return points_->Complete(point); };
    if (!std::ranges::all_of(what.points, complete)) return waiting_.push_back(what);
    real_->Enqueue(what.op);
  }

  Device* const real_;
  const std::shared_ptr<Points> points_;
  std::vector<Waiting> waiting_;
  std::vector<uint32_t> after_;  // of the next operation
  std::vector<CallerStream> destroyed_;
  bool capturing_ = false;
  std::optional<CallerStream> captured_;
  std::function<void()> meanwhile_;
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

TEST_F(StreamsTest, OnceNoViewIsAliveWhoComesAfterTheStreamsMayHaveTheMemory) {
  struct Operation final : Event {
    void Handle() override { ended = true; }
    DeviceOp op;
    bool ended = false;
  } later, elsewhere;
  for (Operation* operation : {&later, &elsewhere}) {
    operation->op.stream = StreamKind::kFetch;
    operation->op.inbox = waiting_.inbox();
    operation->op.event = operation;
  }
  Acquire(a_);
  Acquire(b_);
  DlManagedTensor* view = View(0);
  Release(a_);
  Release(b_);
  EXPECT_TRUE(views_->Viewed(base_));
  view->deleter(view);
  EXPECT_TRUE(views_->Viewed(base_)) << "its streams were not asked yet";
  views_->Settle();
  EXPECT_FALSE(views_->Viewed(base_));
  EXPECT_TRUE(views_->InUse(base_));
  EXPECT_EQ(1, freed_);
  views_->OrderAfterUsers(base_ + 4096, StreamKind::kFetch);
  stepped_.Enqueue(&elsewhere.op);
  waiting_.HandleUntil([&] { return elsewhere.ended; });
  views_->OrderAfterUsers(base_, StreamKind::kFetch);
  stepped_.Enqueue(&later.op);
  for (CallerStream stream : {b_, a_}) {
    waiting_.inbox()->HandleAll();
    EXPECT_FALSE(later.ended) << "before stream " << stream.handle;
    stepped_.Pass(stream);
  }
  waiting_.HandleUntil([&] { return later.ended && !views_->fenced(); });
  EXPECT_FALSE(views_->InUse(base_));
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

// The control thread hears of a release while the unit, acquired again at once, is released again.
TEST_F(StreamsTest, AReleaseThatFailsHasDoneNothingWhateverIsHeardOfMeanwhile) {
  for (const bool fails : {false, true}) {
    SCOPED_TRACE(fails);
    Acquire(a_);
    absl::StatusOr<Fences> first = views_->RecordRelease(kUnit, a_);
    ASSERT_TRUE(first.ok()) << first.status();
    Acquire(a_);
    stepped_.set_capturing(fails);
    stepped_.Meanwhile([&] {
      views_->HoldUntil(base_, *std::move(first));
      acquired_ = 0;
      views_->Hide(kUnit);
    });
    absl::StatusOr<Fences> second = views_->RecordRelease(kUnit, a_);
    EXPECT_EQ(!fails, second.ok()) << second.status();
    EXPECT_TRUE(views_->Shown(kUnit));
    stepped_.set_capturing(false);
    if (fails) second = views_->RecordRelease(kUnit, a_);
    ASSERT_TRUE(second.ok()) << second.status();
    views_->HoldUntil(base_, *std::move(second));
    views_->Hide(kUnit);
    EXPECT_FALSE(views_->Shown(kUnit));
    ExpectHeldUntilAllHavePassed({a_});
  }
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
