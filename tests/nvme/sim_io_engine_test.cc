// The simulated engine's own rules, and two drives of it under one block store.

#include "nvme/sim_io_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "core/sim_world.h"
#include "core/status.h"
#include "nvme/block_store.h"
#include "tests/nvme/store_trial.h"

namespace sluice {
namespace {

using testing::HasSubstr;

// Blocks lie on two drives in turn, of which one is four times slower than its rate says. Reads are
// asked for all at once, so that each drive always has work; those of the fast one end when it has
// read them. In one queue for both, first come, first served, the last of them could not begin
// before all but in_flight_max of the slow drive's had ended.
TEST(SimDrivesTest, ASlowDriveLeavesTheOtherItsPlaces) {
  constexpr size_t kCount = 400;
  constexpr double kFast = 4e8;
  constexpr double kSlow = 1e8;
  constexpr Nanos kLatency{20'000};
  const IoEngine::Limits limits{.in_flight_max = 8};
  SimWorld world(1);
  Metrics metrics;
  TraceEvents trace(0);
  const SegmentTable table = PlanSegments(std::vector<BlockShape>(kCount, {.size = KiB(64)}),
                                          std::vector<Drive>(2), {.segment_bytes = GiB(1)});
  const auto engine = MakeSimIoEngine({.bytes_per_second = {kFast, kSlow},
                                       .file_drive = table.file_drive,
                                       .latency_min = kLatency,
                                       .latency_max = kLatency},
                                      table.file_sizes, limits, &world);
  BlockStore store(table, engine.get(), limits, &world, &metrics, &trace);
  std::vector<Transfer> transfers(kCount);
  AlignedBuffer memory(kCount << 16);
  const auto buffer = [&memory](size_t b) { return memory.view().subspan(b << 16, 1 << 16); };
  for (uint32_t b = 0; b < kCount; ++b) {
    store.PrepareWrite(&transfers[b], BlockIndex(b), buffer(b));
    BlockStore::Seal(&transfers[b]);
    store.StartWrite(&transfers[b], IoPriority::kNormal);
  }
  while (!store.idle()) store.Poll(kForever);
  const TimePoint begin = world.Now();
  for (uint32_t b = 0; b < kCount; ++b) {
    transfers[b].ended = false;
    store.StartRead(&transfers[b], BlockIndex(b), buffer(b), IoPriority::kNormal);
  }
  std::array<double, 2> seconds{};  // until the last of each drive ended
  std::array<size_t, 2> reads{};
  for (size_t judged = 0; judged < kCount;) {
    store.Poll(kForever);
    for (uint32_t b = 0; b < kCount; ++b) {
      if (!std::exchange(transfers[b].ended, false)) continue;
      ++judged;
      const size_t d = store.drive(BlockIndex(b)).value();
      seconds[d] = std::chrono::duration<double>(world.Now() - begin).count();
      ++reads[d];
    }
  }
  constexpr double kBytes = 65536;
  EXPECT_EQ(reads[0], kCount / 2);
  const double in_one_queue = (kCount / 2.0 - 8) * kBytes / kSlow;
  EXPECT_LT(seconds[0], 1.02 * (kCount / 2.0 * kBytes / kFast));
  EXPECT_LT(seconds[0], in_one_queue / 3);
  EXPECT_LT(seconds[1], 1.02 * (kCount / 2.0 * kBytes / kSlow));
  for (size_t d = 0; d < 2; ++d) {
    EXPECT_EQ(store.drive_states()[d].reads.value(), kCount / 2);
    EXPECT_EQ(store.drive_states()[d].read_bytes.value(), kCount / 2 * (64 << 10));
    EXPECT_EQ(store.drive_states()[d].in_flight_max, 4u);
  }
}

class SimIoEngineTest : public testing::Test {
 protected:
  IoOp Op(IoKind kind, int64_t offset, MemoryView memory) {
    IoOp op;
    op.kind = kind;
    op.offset = FileOffset(offset);
    op.memory = memory;
    return op;
  }
  void Finish(size_t n) {
    std::vector<IoOp*> done(8);
    while (n > 0) n -= engine_->Poll(done, kForever);
  }

  SimWorld world_{3};
  std::unique_ptr<IoEngine> engine_ = MakeSimIoEngine({}, std::array{KiB(64)}, {}, &world_);
  AlignedBuffer buffer_{16 << 10};
};

TEST_F(SimIoEngineTest, OverlapIsABugUnlessBothRead) {
  const MemoryView m = buffer_.view();
  IoOp a = Op(IoKind::kRead, 0, m.subspan(0, 4096));
  IoOp b = Op(IoKind::kRead, 2048, m.subspan(4096, 4096));
  IoOp c = Op(IoKind::kWrite, 6143, m.subspan(8192, 4096));
  IoOp d = Op(IoKind::kWrite, 12288, m.subspan(12288, 4096));
  IoOp* ops[] = {&a, &b, &c, &d};
  ASSERT_EQ(engine_->Submit(ops), 4u);
  Finish(4);
  EXPECT_TRUE(a.status.ok() && b.status.ok() && d.status.ok());
  EXPECT_TRUE(absl::IsInternal(c.status));
  EXPECT_THAT(Message(c.status), HasSubstr("overlaps one in flight, reading 4096 bytes at 2048"));
}

TEST_F(SimIoEngineTest, ABufferChangedWhileItIsWrittenShows) {
  size_t shown = 0;
  for (int i = 0; i < 50; ++i) {
    IoOp write = Op(IoKind::kWrite, 0, buffer_.view().first(4096));
    IoOp read = Op(IoKind::kRead, 0, buffer_.view().subspan(4096, 4096));
    std::ranges::fill(write.memory, std::byte{1});
    IoOp* op = &write;
    ASSERT_EQ(engine_->Submit({&op, 1}), 1u);
    std::ranges::fill(write.memory, std::byte{2});
    Finish(1);
    op = &read;
    ASSERT_EQ(engine_->Submit({&op, 1}), 1u);
    Finish(1);
    if (read.memory[0] == std::byte{2}) ++shown;
  }
  EXPECT_GT(shown, 40u);
}

}  // namespace
}  // namespace sluice
