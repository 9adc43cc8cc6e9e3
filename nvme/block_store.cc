#include "nvme/block_store.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace sluice {

BlockStore::BlockStore(SegmentTable table, IoEngine* engine, const IoEngine::Limits& limits,
                       Clock* clock, Metrics* metrics, TraceEvents* trace)
    : table_(std::move(table)),
      extents_(&table_),
      engine_(engine),
      queue_(engine, SharesOf(table_.drives, limits.in_flight_max), table_.file_drive),
      blocks_(table_.block_sizes.size()),
      under_way_(table_.file_sizes.size()),
      drive_states_(table_.drives.size()),
      done_(limits.in_flight_max),
      clock_(clock),
      trace_(trace),
      read_bytes_(metrics->Get("nvme_read_bytes")),
      write_bytes_(metrics->Get("nvme_write_bytes")),
      reads_(metrics->Get("nvme_reads")),
      writes_(metrics->Get("nvme_writes")) {
  SLUICE_CHECK(table_.extents.size() >= blocks_.size());
  for (uint32_t b = 0; b < blocks_.size(); ++b) blocks_[b].current = ExtentIndex(b);
  const std::vector<uint32_t> shares = SharesOf(table_.drives, limits.in_flight_max);
  for (size_t d = 0; d < shares.size(); ++d) drive_states_[d].in_flight_max = shares[d];
  for (size_t f = 0; f < table_.file_sizes.size(); ++f)
    drive_states_[table_.file_drive[f].value()].extents += table_.file_sizes[f];
  MakeChecksums();
  read_track_ = trace->AddTrack("nvme read");
  write_track_ = trace->AddTrack("nvme write");
}

// An extent has room for the checksums of any block of its length.
void BlockStore::MakeChecksums() {
  std::map<Bytes, size_t> pieces;  // the most, by length
  for (size_t b = 0; b < blocks_.size(); ++b) {
    size_t& most = pieces[table_.extents[b].length];
    most = std::max<size_t>(most, table_.pieces[b].count());
    pieces_max_ = std::max(pieces_max_, most);
  }
  size_t all = 0;
  for (const Extent& extent : table_.extents) {
    first_checksum_.push_back(all);
    all += pieces[extent.length];
  }
  checksums_.resize(all);
}

void BlockStore::Occupy(BlockIndex block) {
  SLUICE_CHECK(block.value() < blocks_.size());
  SLUICE_CHECK_MSG(!std::exchange(blocks_[block.value()].busy, true),
                   "two transfers of one block at a time");
}

// A write without an extent is never started: it only needs to know its bytes.
void BlockStore::Prepare(BlockTransfer* transfer, IoKind kind, const PinnedBlock& what,
                         MemoryView buffer) {
  const size_t length = extent_length(what.block).size();
  SLUICE_CHECK(buffer.size() >= length);
  transfer->kind = kind;
  transfer->memory = buffer.first(length);
  transfer->IoOp::status = absl::OkStatus();
  transfer->what_ = what;
  transfer->data_ = buffer.first(table_.block_sizes[what.block.value()].size());
  transfer->pieces_ = &table_.pieces[what.block.value()];
  transfer->checksums_.resize(pieces_max_);
  transfer->of_pin_ = false;
  transfer->sealed_ = false;
  if (what.extent == kNoExtent) return;
  const Extent& extent = extents_.extent(what.extent);
  transfer->file = extent.file;
  transfer->offset = extent.offset;
  transfer->drive_ = &table_.drives[extents_.drive(what.extent).value()];
}

void BlockStore::Start(BlockTransfer* transfer, IoPriority priority) {
  ++*UnderWayLike(*transfer);
  if (transfer->kind == IoKind::kRead)
    std::ranges::copy(ChecksumsOf(transfer->what_.extent, *transfer->pieces_),
                      transfer->checksums_.begin());
  transfer->queued_ = clock_->Now();
  queue_.Push(transfer, priority);
}

void BlockStore::Refuse(BlockTransfer* transfer, absl::Status status) {
  transfer->IoOp::status = std::move(status);
  refused_.Push(transfer);
}

void BlockStore::StartRead(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                           IoPriority priority) {
  Occupy(block);
  const Block& b = blocks_[block.value()];
  Prepare(transfer, IoKind::kRead,
          {.block = block, .extent = b.current, .generation = b.generation}, buffer);
  b.generation > 0 ? Start(transfer, priority) : Refuse(transfer, NothingToRead(block));
}

void BlockStore::StartRead(BlockTransfer* transfer, const PinnedBlock& pin, MemoryView buffer,
                           IoPriority priority) {
  Prepare(transfer, IoKind::kRead, pin, buffer);
  transfer->of_pin_ = true;
  extents_.AddUser(pin.extent);
  Start(transfer, priority);
}

absl::Status BlockStore::NothingToRead(BlockIndex block) const {
  const uint64_t last = blocks_[block.value()].last_generation;
  return absl::DataLossError(
      last == 0 ? fmt::format("block {} is read but was never written", block.value())
                : fmt::format("block {} can't be read: writing generation {} of it failed",
                              block.value(), last));
}

absl::Status BlockStore::Verify(const BlockTransfer& transfer) {
  SLUICE_RETURN_IF_ERROR(VerifyPieces(transfer, {.first = 0, .last = transfer.pieces_->count()}));
  return VerifyPadding(transfer);
}

absl::Status BlockStore::VerifyPieces(const BlockTransfer& transfer, PieceRange pieces) {
  for (uint32_t p = pieces.first; p < pieces.last; ++p)
    SLUICE_RETURN_IF_ERROR(VerifyPiece(transfer, p, transfer.pieces_->Sums(transfer.data_, p)));
  return absl::OkStatus();
}

absl::Status BlockStore::VerifyPiece(const BlockTransfer& transfer, uint32_t piece,
                                     const StripeSums& sums) {
  const PinnedBlock& what = transfer.what_;
  const BlockPieces& pieces = *transfer.pieces_;
  const uint64_t found = pieces.Checksum(sums, what.block, what.generation, piece);
  const uint64_t expected = transfer.checksums_[piece];
  if (found == expected) return absl::OkStatus();
  std::vector<int64_t> places;
  for (uint32_t c = 0; c < pieces.columns(); ++c)
    places.push_back(transfer.offset.value() + static_cast<int64_t>(pieces.begin(piece, c)));
  return absl::DataLossError(fmt::format(
      "block {} of generation {}, {} bytes at {} of swap file {} on {}: checksum is {:016x}, "
      "not {:016x}: the drive returned other bytes than were written",
      what.block.value(), what.generation, pieces.size(piece), fmt::join(places, " and at "),
      transfer.file.value(), transfer.drive_->path, found, expected));
}

absl::Status BlockStore::VerifyPadding(const BlockTransfer& transfer) {
  const MemoryView padding = transfer.memory.subspan(transfer.data_.size());
  const auto wrong = std::ranges::find_if(padding, [](std::byte b) { return b != std::byte{0}; });
  if (wrong == padding.end()) return absl::OkStatus();
  return absl::DataLossError(fmt::format(
      "block {} of generation {}, the padding at {} of swap file {} on {}, is not zero: the drive "
      "returned other bytes than were written",
      transfer.what_.block.value(), transfer.what_.generation,
      transfer.offset.value() + (&*wrong - transfer.memory.data()), transfer.file.value(),
      transfer.drive_->path));
}

void BlockStore::PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                              WritePlace place) {
  Occupy(block);
  Block& b = blocks_[block.value()];
  b.next = b.current;
  if (place == WritePlace::kElsewhere || extents_.shared(b.current))
    b.next = extents_.Take(drive(block), extent_length(block)).value_or(kNoExtent);
  Prepare(transfer, IoKind::kWrite,
          {.block = block, .extent = b.next, .generation = b.last_generation + 1}, buffer);
}

void BlockStore::Seal(BlockTransfer* transfer) {
  SealPieces(transfer, {.first = 0, .last = transfer->pieces_->count()});
  EndSeal(transfer);
}

void BlockStore::SealPieces(BlockTransfer* transfer, PieceRange pieces) {
  for (uint32_t p = pieces.first; p < pieces.last; ++p)
    SealPiece(transfer, p, transfer->pieces_->Sums(transfer->data_, p));
}

void BlockStore::SealPiece(BlockTransfer* transfer, uint32_t piece, const StripeSums& sums) {
  const PinnedBlock& what = transfer->what_;
  transfer->checksums_[piece] =
      transfer->pieces_->Checksum(sums, what.block, what.generation, piece);
}

void BlockStore::EndSeal(BlockTransfer* transfer) {
  const size_t used = transfer->data_.size();
  std::memset(transfer->memory.data() + used, 0, transfer->memory.size() - used);
  transfer->sealed_ = true;
}

void BlockStore::StartWrite(BlockTransfer* transfer, IoPriority priority) {
  SLUICE_CHECK_MSG(std::exchange(transfer->sealed_, false), "a write must be sealed first");
  Block& b = blocks_[transfer->block().value()];
  b.last_generation = transfer->what_.generation;
  if (b.next == kNoExtent) return Refuse(transfer, NoSpare(*transfer));
  if (b.next == b.current) b.generation = 0;  // until it has succeeded, nothing whole is there
  Start(transfer, priority);
}

absl::Status BlockStore::NoSpare(const BlockTransfer& transfer) const {
  const BlockIndex block = transfer.block();
  const DriveIndex on = drive(block);
  return absl::ResourceExhaustedError(fmt::format(
      "drive {} has no spare extent for block {}, whose generation {} is kept: all {} extents of "
      "{} bytes hold something; reserve one more for each generation that is kept, or keep fewer",
      table_.drives[on.value()].path, block.value(), blocks_[block.value()].generation,
      extents_.CountOf(on, extent_length(block)).all, extent_length(block).value()));
}

void BlockStore::Cancel(BlockTransfer* transfer) {
  Block& b = blocks_[transfer->block().value()];
  const ExtentIndex next = std::exchange(b.next, kNoExtent);
  if (next != kNoExtent && next != b.current) extents_.RemoveUser(next);
  b.busy = false;
}

absl::StatusOr<PinnedBlock> BlockStore::Pin(BlockIndex block) {
  SLUICE_CHECK(block.value() < blocks_.size());
  const Block& b = blocks_[block.value()];
  if (b.next == b.current) {
    return absl::FailedPreconditionError(
        fmt::format("block {} can't be pinned: it is being written in place", block.value()));
  }
  if (b.generation == 0) return absl::FailedPreconditionError(NothingToRead(block).message());
  extents_.AddUser(b.current);
  return PinnedBlock{.block = block, .extent = b.current, .generation = b.generation};
}

void BlockStore::Unpin(const PinnedBlock& pin) { extents_.RemoveUser(pin.extent); }

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
    queue_.Ended(*transfer);
    --*UnderWayLike(*transfer);
    Count(*transfer);
    End(transfer);
  }
  queue_.Submit();
  return ended + n;
}

void BlockStore::EndWrite(const BlockTransfer& transfer) {
  Block& b = blocks_[transfer.block().value()];
  const ExtentIndex next = std::exchange(b.next, kNoExtent);
  if (transfer.status().ok()) {
    b.generation = transfer.what_.generation;
    std::ranges::copy(std::span(transfer.checksums_).first(transfer.pieces_->count()),
                      ChecksumsOf(next, *transfer.pieces_).begin());
    if (next != b.current) extents_.RemoveUser(std::exchange(b.current, next));
  } else if (next != kNoExtent && next != b.current) {
    extents_.RemoveUser(next);
  }
}

void BlockStore::End(BlockTransfer* transfer) {
  if (transfer->of_pin_) {
    extents_.RemoveUser(transfer->what_.extent);
  } else {
    if (transfer->kind == IoKind::kWrite) EndWrite(*transfer);
    blocks_[transfer->block().value()].busy = false;
  }
  transfer->OnDone();
}

size_t* BlockStore::UnderWayLike(const BlockTransfer& transfer) {
  UnderWay& file = under_way_[transfer.file.value()];
  return transfer.kind == IoKind::kRead ? &file.reads : &file.writes;
}

void BlockStore::ResetCounters() {
  for (DriveState& d : drive_states_) {
    for (Counter* counter : {&d.reads, &d.read_bytes, &d.writes, &d.write_bytes, &d.failed})
      counter->Set(0);
    for (Histogram* times : {&d.queue_wait_ns, &d.read_ns, &d.write_ns}) times->Reset();
  }
}

void BlockStore::Count(const BlockTransfer& transfer) {
  const bool read = transfer.kind == IoKind::kRead;
  const int64_t bytes = transfer.transferred.value();
  (read ? reads_ : writes_)->Add();
  (read ? read_bytes_ : write_bytes_)->Add(bytes);
  DriveState& drive = drive_states_[table_.file_drive[transfer.file.value()].value()];
  (read ? drive.reads : drive.writes).Add();
  (read ? drive.read_bytes : drive.write_bytes).Add(bytes);
  if (!transfer.status().ok()) drive.failed.Add();
  drive.queue_wait_ns.Add((transfer.submitted - transfer.queued_).count());
  (read ? drive.read_ns : drive.write_ns).Add((transfer.completed - transfer.submitted).count());
  trace_->Record(read ? read_track_ : write_track_, read ? "read" : "write",
                 transfer.block().value(), transfer.submitted, transfer.completed);
}

}  // namespace sluice
