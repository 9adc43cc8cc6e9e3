// What every Device promises: the host device's and the simulated one's. (A GPU's: tests/gpu.)
// Where callers have streams: stream_order_conformance.h.

#include "core/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <functional>
#include <latch>
#include <random>
#include <vector>

#include "core/sim_memory.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "tests/core/stream_order_conformance.h"
#include "tests/core/waiting_inbox.h"

namespace sluice {
namespace {

using testing::HasSubstr;

enum class Where { kHost, kSimulated };

// An operation that knows that it has ended.
struct Op final : Event {
  void Handle() override {
    ended = true;
    order = (*counter)++;
  }
  DeviceOp op;
  int* counter = nullptr;
  bool ended = false;
  int order = -1;
};

class DeviceTest : public testing::TestWithParam<Where> {
 protected:
  bool simulated() const { return GetParam() == Where::kSimulated; }

  void Start(Bytes hbm_limit, double link_bytes_per_second) {
    if (simulated()) {
      device_ =
          MakeSimDevice({.link_bytes_per_second = link_bytes_per_second, .hbm_limit = hbm_limit},
                        &world_, &memory_);
    } else {
      device_ =
          MakeHostDevice({.hbm_limit = hbm_limit, .link_bytes_per_second = link_bytes_per_second},
                         &steady_, &memory_)
              .value();
    }
  }

  Op* Add(StreamKind stream) {
    Op& op = ops_.emplace_back();
    op.counter = &counter_;
    op.op.stream = stream;
    op.op.inbox = waiting_.inbox();
    op.op.event = &op;
    return &op;
  }
  Op* Copy(StreamKind stream, ConstMemoryView from, std::byte* to) {
    Op* op = Add(stream);
    op->op.from = from;
    op->op.to = to;
    device_->Enqueue(&op->op);
    return op;
  }
  Op* Compute(Nanos duration) {
    Op* op = Add(StreamKind::kCompute);
    op->op.duration = duration;
    device_->Enqueue(&op->op);
    return op;
  }
  void WaitForAll() {
    waiting_.HandleUntil(
        [this] { return std::ranges::all_of(ops_, [](const Op& op) { return op.ended; }); });
  }

  static std::vector<std::byte> RandomBytes(size_t n, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(n);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    return bytes;
  }

  SimMemory memory_;
  SteadyClock steady_;
  SimWorld world_{1};
  WaitingInbox waiting_{simulated() ? &world_ : nullptr};
  int counter_ = 0;
  std::deque<Op> ops_;
  std::unique_ptr<Device> device_;
};

TEST_P(DeviceTest, CopiesExactly) {
  Start(MiB(1), 1e12);
  absl::StatusOr<Arena> hbm = device_->MakeHbmArena(MiB(1));
  ASSERT_TRUE(hbm.ok()) << hbm.status();
  for (const size_t n : {1u, 2u, 63u, 64u, 65u, 4097u, 300'001u}) {
    const std::vector<std::byte> source = RandomBytes(n, n);
    std::vector<std::byte> back(n + 2, std::byte{0x5A});
    std::byte* const there = hbm->memory().data() + 7;
    const Op* up = Copy(StreamKind::kHostToDevice, source, there);
    WaitForAll();
    EXPECT_TRUE(up->op.status.ok());
    Copy(StreamKind::kDeviceToHost, ConstMemoryView(there, n), back.data() + 1);
    WaitForAll();
    EXPECT_TRUE(std::equal(source.begin(), source.end(), back.begin() + 1)) << n;
    EXPECT_EQ(std::byte{0x5A}, back.front());
    EXPECT_EQ(std::byte{0x5A}, back.back());
  }
}

TEST_P(DeviceTest, OneStreamsOperationsRunInOrder) {
  Start(MiB(1), 1e12);
  // Each copy reads what the one before has written.
  constexpr size_t kSteps = 200;
  std::vector<std::byte> memory((kSteps + 1) * 64);
  std::fill_n(memory.begin(), 64, std::byte{0xC3});
  for (size_t i = 0; i < kSteps; ++i)
    Copy(StreamKind::kHostToDevice, ConstMemoryView(memory).subspan(i * 64, 64),
         memory.data() + (i + 1) * 64);
  WaitForAll();
  EXPECT_TRUE(std::ranges::all_of(memory, [](std::byte b) { return b == std::byte{0xC3}; }));
  for (size_t i = 0; i < kSteps; ++i) {
    EXPECT_EQ(static_cast<int>(i), ops_[i].order);
    EXPECT_TRUE(i == 0 || ops_[i].op.started >= ops_[i - 1].op.finished);
  }
}

TEST_P(DeviceTest, StreamsRunSideBySide) {
  Start(MiB(1), 1e12);
  const Op* slow = Compute(std::chrono::milliseconds(300));
  std::vector<std::byte> source(100);
  std::vector<std::byte> target(200);
  const Op* up = Copy(StreamKind::kHostToDevice, source, target.data());
  const Op* down = Copy(StreamKind::kDeviceToHost, source, target.data() + 100);
  WaitForAll();
  EXPECT_LT(up->op.finished, slow->op.finished);
  EXPECT_LT(down->op.finished, slow->op.finished);
}

TEST_P(DeviceTest, OperationsTakeAtLeastTheirModelledTime) {
  Start(MiB(1), 10e6);  // 10 MB/s
  std::vector<std::byte> source(100'000);
  std::vector<std::byte> target(100'000);
  const Op* copy = Copy(StreamKind::kHostToDevice, source, target.data());
  const Op* compute = Compute(std::chrono::milliseconds(3));
  WaitForAll();
  EXPECT_GE(copy->op.finished - copy->op.started, std::chrono::milliseconds(10));
  EXPECT_GE(compute->op.finished - compute->op.started, std::chrono::milliseconds(3));
}

// Doubles `value`, which is a subnormal at first, unless it is flushed.
struct Doubling final : DeviceWork {
  void Launch(void* stream) override {
    handle = stream;
    volatile float subnormal = 1e-40f;
    flushed = subnormal * 2.0f == 0.0f;
    value *= 2;
  }
  int value = 1;
  bool flushed = false;
  void* handle = this;
};

TEST_P(DeviceTest, WorkRunsInOrderBeforeItsCopyAndFlushesSubnormals) {
  Start(MiB(1), 1e12);
  Doubling work;
  constexpr int kTimes = 20;
  int seen[kTimes] = {};
  for (int& copy : seen) {
    Op* op = Add(StreamKind::kCompute);
    op->op.work = &work;
    op->op.from = std::as_bytes(std::span(&work.value, 1));
    op->op.to = reinterpret_cast<std::byte*>(&copy);
    device_->Enqueue(&op->op);
  }
  WaitForAll();
  for (int i = 0; i < kTimes; ++i) {
    EXPECT_TRUE(ops_[static_cast<size_t>(i)].op.status.ok());
    EXPECT_EQ(1 << (i + 1), seen[i]);
  }
  EXPECT_TRUE(work.flushed);
  EXPECT_EQ(nullptr, work.handle);
  volatile float subnormal = 1e-40f;
  EXPECT_NE(0.0f, subnormal * 2.0f) << "the caller's thread is left as it was";
}

TEST_P(DeviceTest, HbmIsLimited) {
  Start(KiB(64), 1e12);
  const absl::Status refused = device_->MakeHbmArena(KiB(64) + Bytes(1)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(Message(refused)), HasSubstr("64 KiB"));
  const absl::StatusOr<Arena> hbm = device_->MakeHbmArena(KiB(64));
  ASSERT_TRUE(hbm.ok()) << hbm.status();
  EXPECT_EQ(KiB(64), hbm->size());
}

TEST_P(DeviceTest, AnOperationMayBeEnqueuedAgainOnceItWasHandled) {
  Start(MiB(1), 1e12);
  std::vector<std::byte> memory(128);
  Op* op = Copy(StreamKind::kHostToDevice, ConstMemoryView(memory).first(64), memory.data() + 64);
  for (int i = 1; i < 100; ++i) {
    WaitForAll();
    EXPECT_EQ(i - 1, op->order);
    op->ended = false;
    device_->Enqueue(&op->op);
  }
  WaitForAll();
}

TEST_P(DeviceTest, TheDestructorWaitsForWhatIsEnqueued) {
  Start(MiB(1), 1e12);
  const std::vector<std::byte> source = RandomBytes(5000, 1);
  std::vector<std::byte> target(50 * source.size());
  for (size_t i = 0; i < 50; ++i)
    Copy(static_cast<StreamKind>(i % 2), source, target.data() + i * source.size());
  device_.reset();
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_TRUE(std::equal(source.begin(), source.end(),
                           target.begin() + static_cast<ptrdiff_t>(i * source.size())));
  }
  WaitForAll();
}

// Work that says that it has begun, and goes on when it is let.
struct Held final : DeviceWork {
  void Launch(void*) override {
    begun.count_down();
    if (wait) go_on.wait();
  }
  std::latch begun{1};
  std::latch go_on{1};
  bool wait = true;
};

TEST_P(DeviceTest, OnceAbandonedItEndsWhatHadBegunAndNothingElse) {
  Start(MiB(1), 1e12);
  EXPECT_EQ(StreamCounts{}, device_->pending());
  Held held;
  held.wait = !simulated();
  const std::vector<std::byte> source(100, std::byte{1});
  std::vector<std::byte> target(100);
  for (const StreamKind stream : {StreamKind::kCompute, StreamKind::kDeviceToHost}) {
    Op* op = Add(stream);
    op->op.work = stream == StreamKind::kCompute ? &held : nullptr;
    if (stream != StreamKind::kCompute) op->op.duration = Nanos(0);
    device_->Enqueue(&op->op);
  }
  for (int i = 0; i < 3; ++i) Copy(StreamKind::kCompute, source, target.data());
  if (!simulated()) held.begun.wait();
  waiting_.HandleUntil([this] { return ops_[1].ended || simulated(); });
  EXPECT_EQ(4u, device_->pending()[static_cast<size_t>(StreamKind::kCompute)]);
  EXPECT_EQ(0u, device_->pending()[static_cast<size_t>(StreamKind::kHostToDevice)]);
  device_->Abandon();
  EXPECT_EQ(1u, device_->pending()[static_cast<size_t>(StreamKind::kCompute)]);
  held.go_on.count_down();
  waiting_.HandleUntil([this] { return ops_[0].ended && ops_[1].ended; });
  EXPECT_EQ(StreamCounts{}, device_->pending());
  device_.reset();
  EXPECT_EQ(std::vector<std::byte>(100), target);
  for (size_t i = 2; i < ops_.size(); ++i) EXPECT_FALSE(ops_[i].ended);
}

TEST_P(DeviceTest, SaysWhatItIs) {
  Start(MiB(1), 1e9);
  EXPECT_FALSE(device_->description().empty());
}

INSTANTIATE_TEST_SUITE_P(All, DeviceTest, testing::Values(Where::kHost, Where::kSimulated),
                         [](const auto& info) {
                           return std::string(info.param == Where::kHost ? "Host" : "Simulated");
                         });

// The simulated device, and callers of it.
class SimStreams {
 public:
  // It is held up for longer than anything takes, and opens by itself.
  class Caller {
   public:
    CallerStream stream() { return {&stream_}; }
    void Read(const std::byte* from, size_t size, std::byte* to) {
      stream_.Add([from, size, to] { std::copy_n(from, size, to); });
    }
    void HoldUp() { stream_.Delay(std::chrono::seconds(10)); }
    void Open() {}

   private:
    SimCallerStream stream_;
  };

  Device* device() { return device_.get(); }
  MemoryView Host(size_t size) { return memory_.emplace_back(size); }
  std::byte* Hbm(size_t size) { return memory_.emplace_back(size).data(); }
  Inbox* inbox() { return waiting_.inbox(); }
  void HandleUntil(const std::function<bool()>& done) { waiting_.HandleUntil(done); }

 private:
  std::deque<std::vector<std::byte>> memory_;
  SimMemory arenas_;
  SimWorld world_{1};
  WaitingInbox waiting_{&world_};
  const std::unique_ptr<Device> device_ = MakeSimDevice({}, &world_, &arenas_);
};
INSTANTIATE_TYPED_TEST_SUITE_P(Simulated, StreamOrderTest, SimStreams);

TEST(HostDeviceTest, FetchesAreInLineWithOtherCopiesToTheDevice) {
  SimMemory memory;
  SteadyClock clock;
  WaitingInbox waiting;
  const auto device = MakeHostDevice({}, &clock, &memory).value();
  EXPECT_FALSE(device->orders_callers());
  constexpr size_t kSteps = 100;
  std::vector<std::byte> bytes((kSteps + 1) * 64);
  std::fill_n(bytes.begin(), 64, std::byte{0xC3});
  int counter = 0;
  std::deque<Op> ops(kSteps);
  for (size_t i = 0; i < kSteps; ++i) {
    Op& op = ops[i];
    op.counter = &counter;
    op.op.stream = i % 3 == 0 ? StreamKind::kFetch : StreamKind::kHostToDevice;
    op.op.from = ConstMemoryView(bytes).subspan(i * 64, 64);
    op.op.to = bytes.data() + (i + 1) * 64;
    op.op.inbox = waiting.inbox();
    op.op.event = &op;
    device->OrderAfter(op.op.stream, device->RecordFence({}).value());
    device->Enqueue(&op.op);
  }
  waiting.HandleUntil([&] { return std::ranges::all_of(ops, &Op::ended); });
  EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0xC3}; }));
}

TEST(HostDeviceTest, ComputeIsScaled) {
  SimMemory memory;
  SteadyClock clock;
  WaitingInbox waiting;
  int counter = 0;
  const auto device = MakeHostDevice({.compute_scale = 3}, &clock, &memory).value();
  Op op;
  op.counter = &counter;
  op.op.stream = StreamKind::kCompute;
  op.op.duration = std::chrono::milliseconds(2);
  op.op.inbox = waiting.inbox();
  op.op.event = &op;
  device->Enqueue(&op.op);
  waiting.HandleUntil([&] { return op.ended; });
  EXPECT_GE(op.op.finished - op.op.started, std::chrono::milliseconds(6));
}

}  // namespace
}  // namespace sluice
