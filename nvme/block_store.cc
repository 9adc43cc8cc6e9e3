#include "nvme/block_store.h"

#include <cstring>
#include <utility>

#include "core/checksum.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

BlockStore::BlockStore(SegmentTable table, std::vector<Bytes> block_sizes, IoEngine* engine,
                       const IoEngine::Limits& limits, Metrics* metrics, TraceEvents* trace)
    : table_(std::move(table)),
      sizes_(std::move(block_sizes)),
      engine_(engine),
      queue_(engine),
      blocks_(sizes_.size()),
      under_way_(table_.file_sizes.size()),
      done_(limits.in_flight_max),
      trace_(trace),
      read_bytes_(metrics->Get("nvme_read_bytes")),
      write_bytes_(metrics->Get("nvme_write_bytes")),
      reads_(metrics->Get("nvme_reads")),
      writes_(metrics->Get("nvme_writes")) {
  SLUICE_CHECK(table_.extents.size() == sizes_.size());
  read_track_ = trace->AddTrack("nvme read");
  write_track_ = trace->AddTrack("nvme write");
}

void BlockStore::Prepare(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                         IoKind kind) {
  SLUICE_CHECK(block.value() < blocks_.size());
  SLUICE_CHECK_MSG(!std::exchange(blocks_[block.value()].busy, true),
                   "two transfers of one block at a time");
  const Extent& extent = table_.extents[block.value()];
  SLUICE_CHECK(Bytes(static_cast<int64_t>(buffer.size())) >= extent.length);
  transfer->kind = kind;
  transfer->file = extent.file;
  transfer->offset = extent.offset;
  transfer->memory = buffer.first(extent.length.size());
  transfer->IoOp::status = absl::OkStatus();
  transfer->block_ = block;
  transfer->sealed_ = false;
  transfer->data_ = buffer.first(sizes_[block.value()].size());
}

void BlockStore::StartRead(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                           IoPriority priority) {
  Prepare(transfer, block, buffer, IoKind::kRead);
  const Block& b = blocks_[block.value()];
  transfer->generation_ = b.generation;
  transfer->checksum_ = b.checksum;
  ++*UnderWayLike(*transfer);
  if (b.generation > 0) return queue_.Push(transfer, priority);
  transfer->IoOp::status = absl::DataLossError(
      b.last_generation == 0
          ? fmt::format("block {} is read but was never written", block.value())
          : fmt::format("block {} can't be read: writing generation {} of it failed", block.value(),
                        b.last_generation));
  refused_.Push(transfer);
}

absl::Status BlockStore::Verify(const BlockTransfer& transfer) {
  const uint64_t found = SeededChecksum(transfer.data_, transfer.block_, transfer.generation_);
  if (found == transfer.checksum_) return absl::OkStatus();
  return absl::DataLossError(
      fmt::format("block {} of generation {}, {} bytes at {} of swap file {}: checksum is {:016x}, "
                  "not {:016x}: the drive returned other bytes than were written",
                  transfer.block_.value(), transfer.generation_, transfer.data_.size(),
                  transfer.offset.value(), transfer.file.value(), found, transfer.checksum_));
}

void BlockStore::PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer) {
  Prepare(transfer, block, buffer, IoKind::kWrite);
  transfer->generation_ = blocks_[block.value()].last_generation + 1;
}

void BlockStore::Seal(BlockTransfer* transfer) {
  const size_t used = transfer->data_.size();
  std::memset(transfer->memory.data() + used, 0, transfer->memory.size() - used);
  transfer->checksum_ = SeededChecksum(transfer->data_, transfer->block_, transfer->generation_);
  transfer->sealed_ = true;
}

void BlockStore::StartWrite(BlockTransfer* transfer, IoPriority priority) {
  SLUICE_CHECK_MSG(std::exchange(transfer->sealed_, false), "a write must be sealed first");
  Block& b = blocks_[transfer->block_.value()];
  b.generation = 0;  // until the write has succeeded, there is nothing whole to read
  b.last_generation = transfer->generation_;
  ++*UnderWayLike(*transfer);
  queue_.Push(transfer, priority);
}

void BlockStore::Cancel(BlockTransfer* transfer) { blocks_[transfer->block_.value()].busy = false; }

size_t BlockStore::Poll(Deadline deadline) {
  queue_.Submit();
  size_t ended = 0;
  // OnDone may add others, for the next call.
  IntrusiveList<IoOp> refused = std::exchange(refused_, {});
  while (!refused.empty()) {
    ++ended;
    End(static_cast<BlockTransfer*>(refused.Pop()));
  }
  const size_t n = engine_->Poll(done_, ended > 0 ? kNoWait : deadline);
  for (size_t i = 0; i < n; ++i) {
    auto* transfer = static_cast<BlockTransfer*>(done_[i]);
    Count(*transfer);
    if (transfer->kind == IoKind::kWrite && transfer->status().ok()) {
      Block& b = blocks_[transfer->block_.value()];
      b.generation = transfer->generation_;
      b.checksum = transfer->checksum_;
    }
    End(transfer);
  }
  queue_.Submit();
  return ended + n;
}

void BlockStore::End(BlockTransfer* transfer) {
  blocks_[transfer->block_.value()].busy = false;
  --*UnderWayLike(*transfer);
  transfer->OnDone();
}

size_t* BlockStore::UnderWayLike(const BlockTransfer& transfer) {
  UnderWay& file = under_way_[transfer.file.value()];
  return transfer.kind == IoKind::kRead ? &file.reads : &file.writes;
}

void BlockStore::Count(const BlockTransfer& transfer) {
  const bool read = transfer.kind == IoKind::kRead;
  (read ? reads_ : writes_)->Add();
  (read ? read_bytes_ : write_bytes_)->Add(transfer.transferred.value());
  trace_->Record(read ? read_track_ : write_track_, read ? "read" : "write",
                 transfer.block_.value(), transfer.submitted, transfer.completed);
}

}  // namespace sluice
