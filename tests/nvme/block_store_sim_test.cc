// The block store over the simulated engine: failures at will, and random work against a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "core/sim_world.h"
#include "core/status.h"
#include "nvme/block_store.h"
#include "nvme/sim_io_engine.h"
#include "tests/core/seeds.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr size_t kBlocks = 8;
constexpr size_t kBlockSize = 5000;

class Transfer : public BlockTransfer {
 public:
  void OnDone() override { ended = true; }
  bool ended = false;
};

// One trial, all of whose choices follow from a seed.
class Trial {
 public:
  explicit Trial(uint64_t seed) : world_(seed) {
    const std::vector<Bytes> sizes(kBlocks, Bytes(kBlockSize));
    const SegmentTable table = PlanSegments(sizes, 2, KiB(16));
    const IoEngine::Limits limits{.in_flight_max = 3};
    engine_ = MakeSimIoEngine({}, table.file_sizes, limits, &world_);
    store_ = std::make_unique<BlockStore>(table, sizes, engine_.get(), limits, &metrics_, &trace_);
    for (Block& block : blocks_) block.memory = std::make_unique<AlignedBuffer>(8192);
  }

  void StartWrite(uint32_t b, uint64_t content) {
    Block& block = Take(b);
    block.content = content;
    block.is_write = true;
    store_->PrepareWrite(&block.transfer, BlockIndex(b), block.memory->view());
    FillRandom(block.transfer.data(), content);
    BlockStore::Seal(&block.transfer);
    store_->StartWrite(&block.transfer, Priority());
  }

  void StartRead(uint32_t b) {
    Block& block = Take(b);
    block.is_write = false;
    std::ranges::fill(block.memory->view(), std::byte{0xEE});
    store_->StartRead(&block.transfer, BlockIndex(b), block.memory->view(), Priority());
  }

  // Judges what has ended against the model; returns how many have.
  size_t Poll(Deadline deadline) {
    const size_t n = store_->Poll(deadline);
    size_t judged = 0;
    for (Block& block : blocks_) {
      if (!block.busy || !block.transfer.ended) continue;
      block.busy = false;
      ++judged;
      if (block.is_write) {
        block.valid = block.transfer.status().ok();
        block.kept = block.content;
      } else {
        JudgeRead(block);
      }
    }
    EXPECT_EQ(n, judged);
    return judged;
  }

  void Drain() {
    while (!store_->idle()) Poll(kForever);
  }

  bool busy(uint32_t b) const { return blocks_[b].busy; }
  const absl::Status& status(uint32_t b) const { return blocks_[b].transfer.status(); }
  SimWorld& world() { return world_; }
  size_t reads_ok() const { return reads_ok_; }
  size_t reads_refused() const { return reads_refused_; }
  size_t reads_unverified() const { return reads_unverified_; }  // their checksum was wrong

 private:
  struct Block {
    Transfer transfer;
    std::unique_ptr<AlignedBuffer> memory;
    bool busy = false;
    bool is_write = false;
    uint64_t content = 0;  // of the write that goes on
    bool valid = false;    // the model: whether there is something to read, and what
    uint64_t kept = 0;
  };

  Block& Take(uint32_t b) {
    Block& block = blocks_[b];
    SLUICE_CHECK(!block.busy);
    block.busy = true;
    block.transfer.ended = false;
    return block;
  }
  IoPriority Priority() { return world_.OneIn(2) ? IoPriority::kUrgent : IoPriority::kNormal; }

  void JudgeRead(const Block& block) {
    const absl::Status& status = block.transfer.status();
    if (!block.valid) {
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      ++reads_refused_;
    } else if (!status.ok()) {
      EXPECT_THAT(std::string(Message(status)), HasSubstr("reading 8192 bytes"));
    } else if (!BlockStore::Verify(block.transfer).ok()) {
      ++reads_unverified_;
    } else {
      AlignedBuffer expected(kBlockSize);
      FillRandom(expected.view(), block.kept);
      EXPECT_TRUE(SameBytes(block.transfer.data(), expected.view()));
      ++reads_ok_;
    }
  }

  SimWorld world_;
  Metrics metrics_;
  TraceEvents trace_{0};
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<BlockStore> store_;
  std::array<Block, kBlocks> blocks_;
  size_t reads_ok_ = 0;
  size_t reads_refused_ = 0;
  size_t reads_unverified_ = 0;
};

TEST(BlockStoreSimTest, AFailedWritePoisonsItsBlockOnlyUntilItIsWrittenAgain) {
  Trial trial(1);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
  trial.Drain();
  trial.world().faults()->Script(SimSeam::kWrite, SimFault::kError, 1, SimFaults::Repeat::kOnce);
  trial.StartWrite(3, 33);
  trial.Drain();
  EXPECT_TRUE(absl::IsDataLoss(trial.status(3)));
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
  trial.Drain();
  EXPECT_EQ(trial.reads_ok(), kBlocks - 1);
  EXPECT_EQ(trial.reads_refused(), 1u);
  EXPECT_THAT(Message(trial.status(3)),
              AllOf(HasSubstr("block 3 can't be read"), HasSubstr("generation 2")));
  trial.StartWrite(3, 34);
  trial.Drain();
  trial.StartRead(3);
  trial.Drain();
  EXPECT_TRUE(trial.status(3).ok()) << trial.status(3);
  EXPECT_EQ(trial.reads_ok(), kBlocks);
}

// Random work; returns what was counted. Whatever goes wrong, no read passes for right that isn't.
struct Counts {
  size_t reads_ok = 0;
  size_t reads_refused = 0;
  size_t reads_unverified = 0;
};
Counts RunRandomly(const std::vector<SimFault>& faults, uint64_t seeds) {
  Counts counts;
  for (const uint64_t seed : Seeds(seeds)) {
    if (testing::Test::HasFailure()) break;
    SCOPED_TRACE(seed);
    Trial trial(seed);
    SimWorld& world = trial.world();
    for (SimFault fault : faults) {
      world.faults()->Draw(SimSeam::kRead, fault, 20);
      world.faults()->Draw(SimSeam::kWrite, fault, 20);
    }
    for (int i = 0; i < 200; ++i) {
      const auto b = static_cast<uint32_t>(world.Uniform(0, kBlocks - 1));
      if (trial.busy(b)) {
        trial.Poll(world.OneIn(4) ? kNoWait : world.Now() + Nanos(100'000));
      } else if (world.OneIn(2)) {
        trial.StartRead(b);
      } else {
        trial.StartWrite(b, world.Random());
      }
    }
    trial.Drain();
    counts.reads_ok += trial.reads_ok();
    counts.reads_refused += trial.reads_refused();
    counts.reads_unverified += trial.reads_unverified();
  }
  return counts;
}

TEST(BlockStoreSimTest, RandomWorkWithErrorsAgreesWithTheModel) {
  const Counts counts =
      RunRandomly({SimFault::kError, SimFault::kShort, SimFault::kRefused, SimFault::kLate}, 150);
  EXPECT_GT(counts.reads_ok, 1000u);
  EXPECT_GT(counts.reads_refused, 100u);
  EXPECT_EQ(counts.reads_unverified, 0u);
}

TEST(BlockStoreSimTest, RandomWorkWithWrongBytesAgreesWithTheModel) {
  const Counts counts = RunRandomly({SimFault::kCorrupt, SimFault::kLost, SimFault::kError}, 150);
  EXPECT_GT(counts.reads_ok, 1000u);
  EXPECT_GT(counts.reads_unverified, 100u);
}

TEST(BlockStoreSimTest, RandomWorkWithoutFaultsAgreesWithTheModel) {
  EXPECT_EQ(RunRandomly({}, 50).reads_unverified, 0u);
}

TEST(BlockStoreSimTest, TheSameSeedGivesTheSameLog) {
  const auto log = [](uint64_t seed) {
    Trial trial(seed);
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
    trial.Drain();
    return trial.world().log();
  };
  EXPECT_EQ(log(5), log(5));
  EXPECT_NE(log(5), log(6));
  EXPECT_THAT(log(5), HasSubstr("write of 8192 at 0:0 ends"));
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
