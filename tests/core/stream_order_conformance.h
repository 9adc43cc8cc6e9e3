// tests/core/stream_order_conformance.h
//
// What every Device promises whose callers have streams: how fences order these and its own, and
// that nobody waits but the streams. Typed tests: instantiated for the simulated device, and for
// CUDA in tests/gpu. A Rig has
//
//   Device* device();
//   MemoryView Host(size_t);         // zeros, that the device's copies can use directly
//   std::byte* Hbm(size_t);
//   Inbox* inbox();
//   void HandleUntil(const std::function<bool()>&);  // handles what comes, and lets time pass
//   class Caller {                   // a stream
//     CallerStream stream();
//     void Read(const std::byte* from, size_t, std::byte* to);  // of HBM, when the stream is there
//     void HoldUp();                 // what comes next waits until
//     void Open();
//   };

#ifndef SLUICE_TESTS_CORE_STREAM_ORDER_CONFORMANCE_H_
#define SLUICE_TESTS_CORE_STREAM_ORDER_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/status.h"

namespace sluice {

template <typename Rig>
class StreamOrderTest : public ::testing::Test {
 protected:
  using Caller = typename Rig::Caller;
  struct Op final : Event {
    void Handle() override { ended = true; }
    DeviceOp op;
    bool ended = false;
  };
  static constexpr size_t kBytes = 4096;
  static constexpr StreamKind kKinds[] = {StreamKind::kHostToDevice, StreamKind::kDeviceToHost,
                                          StreamKind::kCompute,      StreamKind::kFence,
                                          StreamKind::kFetch,        StreamKind::kTake};

  Device* device() { return rig_.device(); }

  // kBytes of host memory that are all `value`.
  MemoryView Filled(int value) {
    const MemoryView memory = rig_.Host(kBytes);
    std::ranges::fill(memory, static_cast<std::byte>(value));
    return memory;
  }
  static bool Is(ConstMemoryView memory, int value) {
    return std::ranges::all_of(memory,
                               [value](std::byte b) { return b == static_cast<std::byte>(value); });
  }
  const Op* Start(StreamKind stream, ConstMemoryView from, std::byte* to) {
    Op& op = ops_.emplace_back();
    op.op.stream = stream;
    op.op.from = from;
    op.op.to = to;
    op.op.inbox = rig_.inbox();
    op.op.event = &op;
    device()->Enqueue(&op.op);
    return &op;
  }
  void WaitFor(const Op* op) {
    rig_.HandleUntil([op] { return op->ended; });
    EXPECT_TRUE(op->op.status.ok()) << op->op.status;
  }
  void Put(int value, std::byte* to) {
    WaitFor(Start(StreamKind::kHostToDevice, Filled(value), to));
  }
  Fence Reached(Caller& caller) {
    absl::StatusOr<Fence> fence = device()->RecordFence(caller.stream());
    SLUICE_CHECK_MSG(fence.ok(), Message(fence.status()));
    return *std::move(fence);
  }
  void WaitUntilPassed(Caller& caller) {
    const Fence fence = Reached(caller);
    rig_.HandleUntil([&fence] { return fence.Complete(); });
  }
  // None of these fences outlives the call.
  void OrderAfterCaller(StreamKind stream, Caller& caller) {
    device()->OrderAfter(stream, Reached(caller));
  }
  void OrderCallerAfter(Caller& caller, StreamKind stream) {
    absl::StatusOr<Fence> end = device()->RecordEnd(stream);
    ASSERT_TRUE(end.ok()) << end.status();
    const absl::Status ordered = device()->OrderCallerAfter(caller.stream(), *end);
    ASSERT_TRUE(ordered.ok()) << ordered;
  }

  std::deque<Op> ops_;
  Rig rig_;
};

TYPED_TEST_SUITE_P(StreamOrderTest);

TYPED_TEST_P(StreamOrderTest, AStreamWaitsForAllFencesItWasToldOfAndOthersGoOn) {
  using Caller = typename TypeParam::Caller;
  for (const StreamKind kind : this->kKinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    const bool up = kind == StreamKind::kHostToDevice || kind == StreamKind::kFetch;
    std::byte* const slot = this->rig_.Hbm(this->kBytes);
    std::byte* const other = this->rig_.Hbm(this->kBytes);
    const MemoryView later = this->Filled(2), elsewhere = this->Filled(3);
    this->Put(1, slot);
    std::vector<MemoryView> seen;
    std::deque<Caller> callers(2);
    Caller idle;
    for (Caller& caller : callers) {
      seen.push_back(this->rig_.Host(this->kBytes));
      caller.HoldUp();
      caller.Read(slot, this->kBytes, seen.back().data());
      this->OrderAfterCaller(kind, caller);
    }
    for (int i = 0; i < 8; ++i) (void)this->Reached(idle);  // in the places of those that are gone
    const auto* op = this->Start(kind, up ? ConstMemoryView(later) : ConstMemoryView(), slot);
    for (const StreamKind goes_on : this->kKinds) {
      if (goes_on == kind) continue;
      const bool copies = goes_on == StreamKind::kHostToDevice || goes_on == StreamKind::kFetch;
      this->WaitFor(
          this->Start(goes_on, copies ? ConstMemoryView(elsewhere) : ConstMemoryView(), other));
    }
    this->rig_.inbox()->HandleAll();
    EXPECT_FALSE(op->ended);
    for (Caller& caller : callers) caller.Open();
    this->WaitFor(op);
    for (size_t i = 0; i < callers.size(); ++i) {
      this->WaitUntilPassed(callers[i]);
      EXPECT_TRUE(this->Is(seen[i], 1)) << "it was overwritten while stream " << i << " read it";
    }
    const MemoryView back = this->rig_.Host(this->kBytes);
    this->WaitFor(this->Start(StreamKind::kDeviceToHost, {slot, this->kBytes}, back.data()));
    EXPECT_TRUE(this->Is(back, up ? 2 : 1));
  }
}

TYPED_TEST_P(StreamOrderTest, ACallersStreamWaitsForACopyAndOthersGoOn) {
  using Caller = typename TypeParam::Caller;
  std::byte* const slot = this->rig_.Hbm(this->kBytes);
  const MemoryView later = this->Filled(2), seen = this->rig_.Host(this->kBytes);
  Caller held, waiting, idle;
  held.HoldUp();
  this->OrderAfterCaller(StreamKind::kFetch, held);
  const auto* copy = this->Start(StreamKind::kFetch, later, slot);
  this->OrderCallerAfter(waiting, StreamKind::kFetch);
  waiting.Read(slot, this->kBytes, seen.data());
  for (int i = 0; i < 8; ++i) {
    const absl::StatusOr<Fence> end = this->device()->RecordEnd(StreamKind::kCompute);
    ASSERT_TRUE(end.ok()) << end.status();
  }
  const Fence read = this->Reached(waiting);
  this->WaitUntilPassed(idle);
  this->rig_.inbox()->HandleAll();
  EXPECT_FALSE(copy->ended);
  EXPECT_FALSE(read.Complete());
  held.Open();
  this->rig_.HandleUntil([&read] { return read.Complete(); });
  EXPECT_TRUE(this->Is(seen, 2));
  this->WaitFor(copy);
}

TYPED_TEST_P(StreamOrderTest, TheEndIsOfWhatWasOnTheStreamThen) {
  using Caller = typename TypeParam::Caller;
  std::byte* const slot = this->rig_.Hbm(this->kBytes);
  const MemoryView bytes = this->Filled(1);
  Caller held;
  held.HoldUp();
  const absl::StatusOr<Fence> idle = this->device()->RecordEnd(StreamKind::kFetch);
  ASSERT_TRUE(idle.ok()) << idle.status();
  const auto* first = this->Start(StreamKind::kFetch, bytes, slot);
  const absl::StatusOr<Fence> end = this->device()->RecordEnd(StreamKind::kFetch);
  ASSERT_TRUE(end.ok()) << end.status();
  this->OrderAfterCaller(StreamKind::kFetch, held);
  const auto* second = this->Start(StreamKind::kFetch, bytes, slot);
  this->rig_.HandleUntil([&end] { return end->Complete(); });
  EXPECT_TRUE(idle->Complete());
  this->WaitFor(first);
  EXPECT_FALSE(second->ended);
  held.Open();
  this->WaitFor(second);
}

// One slot, filled anew for each of many reads; all of it is asked for before any of it can run.
TYPED_TEST_P(StreamOrderTest, ACallerMayBeFarAheadOfEverything) {
  using Caller = typename TypeParam::Caller;
  constexpr int kRounds = 40;
  std::byte* const slot = this->rig_.Hbm(this->kBytes);
  std::vector<MemoryView> seen;
  Caller caller;
  caller.HoldUp();
  for (int i = 0; i < kRounds; ++i) {
    this->OrderAfterCaller(StreamKind::kFetch, caller);
    this->Start(StreamKind::kFetch, this->Filled(i + 1), slot);
    this->OrderCallerAfter(caller, StreamKind::kFetch);
    seen.push_back(this->rig_.Host(this->kBytes));
    caller.Read(slot, this->kBytes, seen.back().data());
  }
  this->rig_.inbox()->HandleAll();
  for (const auto& op : this->ops_) EXPECT_FALSE(op.ended);
  caller.Open();
  this->WaitUntilPassed(caller);
  for (int i = 0; i < kRounds; ++i) EXPECT_TRUE(this->Is(seen[static_cast<size_t>(i)], i + 1)) << i;
  for (const auto& op : this->ops_) this->WaitFor(&op);
}

REGISTER_TYPED_TEST_SUITE_P(StreamOrderTest, AStreamWaitsForAllFencesItWasToldOfAndOthersGoOn,
                            ACallersStreamWaitsForACopyAndOthersGoOn,
                            TheEndIsOfWhatWasOnTheStreamThen, ACallerMayBeFarAheadOfEverything);

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_STREAM_ORDER_CONFORMANCE_H_
