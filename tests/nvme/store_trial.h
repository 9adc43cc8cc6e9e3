// tests/nvme/store_trial.h
//
// Random work on a block store over the simulated engine, beside a model of it: what each block and
// each pin holds, and how many extents of each drive that takes.

#ifndef SLUICE_TESTS_NVME_STORE_TRIAL_H_
#define SLUICE_TESTS_NVME_STORE_TRIAL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "core/sim_world.h"
#include "core/status.h"
#include "nvme/block_store.h"
#include "nvme/sim_io_engine.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {

inline constexpr size_t kBlocks = 8;
inline constexpr size_t kBlockSize = 5000;

class Transfer : public BlockTransfer {
 public:
  void OnDone() override { ended = true; }
  bool ended = false;
};

// One trial, all of whose choices follow from a seed.
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
    store_ =
        std::make_unique<BlockStore>(table, engine_.get(), limits, &world_, &metrics_, &trace_);
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
    bool valid = false;     // the model: whether there is something to read, and what
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

  void JudgeWrite(Block* block);
  void JudgeRead(const Block& block) {
    if (block.valid) return JudgeBytes(block.transfer, block.kept);
    EXPECT_TRUE(absl::IsDataLoss(block.transfer.status())) << block.transfer.status();
    ++reads_refused_;
  }

  void JudgeBytes(const Transfer& transfer, uint64_t content);

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

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_STORE_TRIAL_H_
