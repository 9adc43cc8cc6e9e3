// The block store over the simulated engine: failures at will, and random work against a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <utility>
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

// One trial, all of whose choices follow from a seed. Beside the store it keeps what each block and
// each pin holds, and how many extents of each drive that takes.
class Trial {
 public:
  explicit Trial(uint64_t seed, uint32_t spares = 2) : world_(seed) {
    const std::vector<BlockShape> shapes(kBlocks, {.size = Bytes(kBlockSize)});
    const Drive drives[] = {{.path = "/a"}, {.path = "/b"}};
    const SegmentTable table =
        PlanSegments(shapes, drives, {.segment_bytes = KiB(16), .spares = spares});
    const IoEngine::Limits limits{.in_flight_max = 3};
    engine_ = MakeSimIoEngine({.bytes_per_second = {3e9, 1e9}, .file_drive = table.file_drive},
                              table.file_sizes, limits, &world_);
    store_ = std::make_unique<BlockStore>(table, engine_.get(), limits, &metrics_, &trace_);
    for (Block& block : blocks_) block.memory = std::make_unique<AlignedBuffer>(8192);
  }

  void StartWrite(uint32_t b, uint64_t content, WritePlace place = WritePlace::kInPlace) {
    Block& block = Take(b);
    block.content = content;
    block.is_write = true;
    block.in_place = place == WritePlace::kInPlace && !CurrentIsShared(b);
    block.refused = true;  // it takes nothing so far
    block.refused = !block.in_place && FreeOn(store_->drive(BlockIndex(b))) == 0;
    if (block.in_place) block.valid = false;
    store_->PrepareWrite(&block.transfer, BlockIndex(b), block.memory->view(), place);
    CheckSpace();
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

  void CancelWrite(uint32_t b, WritePlace place) {
    SLUICE_CHECK(!blocks_[b].busy);
    store_->PrepareWrite(&blocks_[b].transfer, BlockIndex(b), blocks_[b].memory->view(), place);
    BlockStore::Seal(&blocks_[b].transfer);
    store_->Cancel(&blocks_[b].transfer);
    CheckSpace();
  }

  void Pin(uint32_t b) {
    const absl::StatusOr<PinnedBlock> pin = store_->Pin(BlockIndex(b));
    EXPECT_EQ(pin.ok(), blocks_[b].valid) << pin.status();
    if (!pin.ok()) {
      EXPECT_TRUE(absl::IsFailedPrecondition(pin.status())) << pin.status();
      return;
    }
    pins_.push_back(std::make_unique<Held>());
    pins_.back()->pin = *pin;
    pins_.back()->content = blocks_[b].kept;
    CheckSpace();
  }
  size_t pins() const { return pins_.size(); }
  void ReadPin(size_t p) {
    Held& held = *pins_[p];
    if (std::exchange(held.reading, true)) return;
    held.transfer.ended = false;
    std::ranges::fill(held.memory.view(), std::byte{0xEE});
    store_->StartRead(&held.transfer, held.pin, held.memory.view(), Priority());
  }
  void Unpin(size_t p) {
    if (pins_[p]->reading) return;
    store_->Unpin(pins_[p]->pin);
    pins_.erase(pins_.begin() + static_cast<std::ptrdiff_t>(p));
    CheckSpace();
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
        JudgeWrite(&block);
      } else {
        JudgeRead(block);
      }
    }
    for (const std::unique_ptr<Held>& held : pins_) {
      if (!held->reading || !held->transfer.ended) continue;
      held->reading = false;
      ++judged;
      JudgeBytes(held->transfer, held->content);
    }
    EXPECT_EQ(n, judged);
    CheckSpace();
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
  size_t writes_refused() const { return writes_refused_; }      // for want of a spare extent
  BlockStore* store() { return store_.get(); }

 private:
  struct Held {
    PinnedBlock pin;
    uint64_t content = 0;
    Transfer transfer;
    AlignedBuffer memory{8192};
    bool reading = false;
  };
  struct Block {
    Transfer transfer;
    std::unique_ptr<AlignedBuffer> memory;
    bool busy = false;
    bool is_write = false;
    bool in_place = false;  // the write that goes on
    bool refused = false;   // it has nowhere to go
    uint64_t content = 0;   // of it
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

  // The model's contents are all different, so they tell generations apart.
  bool CurrentIsShared(uint32_t b) const {
    return blocks_[b].valid && std::ranges::any_of(pins_, [&](const std::unique_ptr<Held>& held) {
             return held->pin.block == BlockIndex(b) && held->content == blocks_[b].kept;
           });
  }

  // Extents that the model knows to be in use: each block's, those that writes go to elsewhere, and
  // those of pinned generations that no block has any more.
  size_t UsedOn(DriveIndex drive) const {
    size_t used = 0;
    std::set<std::pair<uint32_t, uint64_t>> pinned;
    for (const std::unique_ptr<Held>& held : pins_) {
      const Block& block = blocks_[held->pin.block.value()];
      if (store_->drive(held->pin.block) == drive && !(block.valid && block.kept == held->content))
        pinned.insert({held->pin.block.value(), held->content});
    }
    for (uint32_t b = 0; b < kBlocks; ++b) {
      if (store_->drive(BlockIndex(b)) != drive) continue;
      const Block& block = blocks_[b];
      used += block.busy && block.is_write && !block.in_place && !block.refused ? 2 : 1;
    }
    return used + pinned.size();
  }
  size_t FreeOn(DriveIndex drive) const {
    return store_->extents().CountOf(drive, KiB(8)).all - UsedOn(drive);
  }
  void CheckSpace() const {
    for (const DriveIndex drive : {DriveIndex(0), DriveIndex(1)}) {
      const ExtentAllocator::Count count = store_->extents().CountOf(drive, KiB(8));
      EXPECT_EQ(count.all - count.free, UsedOn(drive)) << drive.value();
    }
  }

  void JudgeWrite(Block* block) {
    const absl::Status& status = block->transfer.status();
    const bool no_spare = std::string(Message(status)).find("no spare") != std::string::npos;
    EXPECT_EQ(no_spare, block->refused) << status;
    if (block->refused) {
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      ++writes_refused_;
      const std::string& path =
          store_->drives()[store_->drive(block->transfer.block()).value()].path;
      EXPECT_THAT(std::string(Message(status)),
                  AllOf(HasSubstr("drive " + path + " has no spare extent"), HasSubstr("reserve")));
    } else if (status.ok()) {
      block->valid = true;
      block->kept = block->content;
    }
  }

  void JudgeRead(const Block& block) {
    if (block.valid) return JudgeBytes(block.transfer, block.kept);
    EXPECT_TRUE(absl::IsDataLoss(block.transfer.status())) << block.transfer.status();
    ++reads_refused_;
  }

  void JudgeBytes(const Transfer& transfer, uint64_t content) {
    if (!transfer.status().ok()) {
      EXPECT_THAT(std::string(Message(transfer.status())), HasSubstr("reading 8192 bytes"));
    } else if (!BlockStore::Verify(transfer).ok()) {
      ++reads_unverified_;
    } else {
      AlignedBuffer expected(kBlockSize);
      FillRandom(expected.view(), content);
      EXPECT_TRUE(SameBytes(transfer.data(), expected.view()));
      ++reads_ok_;
    }
  }

  SimWorld world_;
  Metrics metrics_;
  TraceEvents trace_{0};
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<BlockStore> store_;
  std::array<Block, kBlocks> blocks_;
  std::vector<std::unique_ptr<Held>> pins_;
  size_t reads_ok_ = 0;
  size_t reads_refused_ = 0;
  size_t reads_unverified_ = 0;
  size_t writes_refused_ = 0;
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

// Whichever write fails and however: in place it takes its block's bytes with it, elsewhere it
// leaves them, and no other block is touched.
TEST(BlockStoreSimTest, OneFailedWriteOfEachKind) {
  for (const WritePlace place : {WritePlace::kInPlace, WritePlace::kElsewhere}) {
    for (const SimFault fault : {SimFault::kError, SimFault::kShort, SimFault::kRefused}) {
      for (uint64_t nth = 1; nth <= kBlocks; ++nth) {
        SCOPED_TRACE(nth);
        Trial trial(nth, kBlocks);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
        trial.Drain();
        trial.world().faults()->Script(SimSeam::kWrite, fault, nth, SimFaults::Repeat::kOnce);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 100 + b, place);
        trial.Drain();
        size_t failed = 0;
        for (uint32_t b = 0; b < kBlocks; ++b) failed += !trial.status(b).ok();
        EXPECT_EQ(failed, 1u);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
        trial.Drain();
        const size_t lost = place == WritePlace::kInPlace ? 1 : 0;
        EXPECT_EQ(trial.reads_ok(), kBlocks - lost);
        EXPECT_EQ(trial.reads_refused(), lost);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 200 + b, place);
        trial.Drain();
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
        trial.Drain();
        EXPECT_EQ(trial.reads_ok(), 2 * kBlocks - lost);
      }
    }
  }
}

// A write elsewhere that the drive drops leaves in the extent what was there: another generation,
// or another block.
TEST(BlockStoreSimTest, ALostWriteElsewhereIsFound) {
  for (uint64_t nth = 1; nth <= kBlocks; ++nth) {
    Trial trial(nth, 1);
    const auto write_all = [&trial](uint64_t content) {
      for (uint32_t b = 0; b < kBlocks; ++b) {
        trial.StartWrite(b, content + b, WritePlace::kElsewhere);
        trial.Drain();
      }
    };
    for (const uint64_t content : {100, 200, 300}) write_all(content);
    trial.world().faults()->Script(SimSeam::kWrite, SimFault::kLost, nth, SimFaults::Repeat::kOnce);
    write_all(400);
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
    trial.Drain();
    EXPECT_EQ(trial.reads_unverified(), 1u);
    EXPECT_EQ(trial.reads_ok(), kBlocks - 1);
  }
}

// Every generation that is kept stays readable through as many writes as there are.
TEST(BlockStoreSimTest, PinnedGenerationsOutliveTheWritesAfterThem) {
  Trial trial(1, 3 * kBlocks / 2);
  for (uint64_t round = 0; round < 4; ++round) {
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 100 * round + b);
    trial.Drain();
    for (uint32_t b = 0; b < kBlocks && round < 3; ++b) trial.Pin(b);
    for (size_t p = 0; p < trial.pins(); ++p) trial.ReadPin(p);
    trial.Drain();
  }
  EXPECT_EQ(trial.reads_ok(), kBlocks * (1 + 2 + 3 + 3));
  EXPECT_EQ(trial.writes_refused(), 0u);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.Pin(b);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 1000 + b);
  trial.Drain();
  EXPECT_EQ(trial.writes_refused(), kBlocks) << "all spare extents are pinned";
  while (trial.pins() > 0) trial.Unpin(0);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 2000 + b);
  trial.Drain();
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
  trial.Drain();
  EXPECT_EQ(trial.reads_ok(), kBlocks * 10);
}

// Random work; returns what was counted. Whatever goes wrong, no read passes for right that isn't.
struct Counts {
  size_t reads_ok = 0;
  size_t reads_refused = 0;
  size_t reads_unverified = 0;
  size_t writes_refused = 0;
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
      const WritePlace place = world.OneIn(2) ? WritePlace::kInPlace : WritePlace::kElsewhere;
      const auto p = static_cast<size_t>(world.Uniform(0, std::max<size_t>(trial.pins(), 1) - 1));
      if (world.OneIn(8)) {
        trial.Pin(b);
      } else if (world.OneIn(6) && p < trial.pins()) {
        world.OneIn(2) ? trial.ReadPin(p) : trial.Unpin(p);
      } else if (trial.busy(b)) {
        trial.Poll(world.OneIn(4) ? kNoWait : world.Now() + Nanos(100'000));
      } else if (world.OneIn(10)) {
        trial.CancelWrite(b, place);
      } else if (world.OneIn(2)) {
        trial.StartRead(b);
      } else {
        trial.StartWrite(b, world.Random(), place);
      }
    }
    trial.Drain();
    counts.reads_ok += trial.reads_ok();
    counts.reads_refused += trial.reads_refused();
    counts.reads_unverified += trial.reads_unverified();
    counts.writes_refused += trial.writes_refused();
  }
  return counts;
}

TEST(BlockStoreSimTest, RandomWorkWithErrorsAgreesWithTheModel) {
  const Counts counts =
      RunRandomly({SimFault::kError, SimFault::kShort, SimFault::kRefused, SimFault::kLate}, 150);
  EXPECT_GT(counts.reads_ok, 1000u);
  EXPECT_GT(counts.reads_refused, 100u);
  EXPECT_GT(counts.writes_refused, 100u);
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

// Blocks lie on two drives in turn, of which one is four times slower than its rate says. Reads are
// asked for all at once, so that each drive always has work; those of the fast one end when it has
// read them. In one queue for both, first come, first served, the last of them could not begin
// before all but in_flight_max of the slow drive's had ended.
TEST(BlockStoreSimTest, ASlowDriveLeavesTheOtherItsPlaces) {
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
  BlockStore store(table, engine.get(), limits, &metrics, &trace);
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
