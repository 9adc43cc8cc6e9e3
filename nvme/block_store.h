// nvme/block_store.h
//
// A BlockStore reads and writes numbered blocks over an IoEngine, knows the generation, checksums
// and extent of each, and orders what is submitted: each drive has its share of the engine's
// places, urgent transfers go first, else first come.
//
// A block has a generation, 0 before its first write; each write makes the next one. Each piece of
// it has a checksum (core/checksum.h), seeded with block, generation and piece, in a table here,
// not in the block: 8 bytes for each piece of an extent, 0.55 GB for 10^12 parameters whose fp32
// states and 16-bit copies are all on drives, 0.61 GB if their 16-bit gradients are too. Checksums
// are computed by whoever has the bytes in cache: the writer seals every piece before StartWrite,
// the reader verifies every piece after the read, whole blocks with Seal and Verify, or piece by
// piece, perhaps with sums that it has made on the way. All of these are thread-safe and touch only
// the transfer. What was not verified must not be used. Padding is zeros, and found to be.
//
// A write goes in place, over the generation before it, or elsewhere, into a spare extent of the
// same drive; the block then changes over when the write has succeeded. A pinned generation is
// never written over: while there is a pin of it, writes of its block go elsewhere, and it can be
// read by its pin, whatever the block holds now. Its extent is given back with the last pin.
//
// A failed transfer ends with its status, which names the drive, and poisons nothing else. A block
// whose write in place failed keeps no valid generation (reads of it fail with DataLoss until it is
// written again); one whose write elsewhere failed keeps the generation that it had.
//
// Threads: all but seals, verifications and the counters belong to one thread, the control thread.
// Allocates at creation, and in a transfer that is used for the first time.

#ifndef SLUICE_NVME_BLOCK_STORE_H_
#define SLUICE_NVME_BLOCK_STORE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/checksum.h"
#include "core/clock.h"
#include "core/histogram.h"
#include "core/metrics.h"
#include "core/trace_events.h"
#include "core/types.h"
#include "nvme/extents.h"
#include "nvme/io_engine.h"
#include "nvme/io_queue.h"
#include "nvme/segments.h"

namespace sluice {

// A generation of a block that stays as it is until Unpin.
struct PinnedBlock {
  BlockIndex block;
  ExtentIndex extent;
  uint64_t generation = 0;
};

// One block on its way, owned by the caller from Start... until OnDone. Its buffer holds at least
// the block's extent; the block's own bytes come first, what follows is padding.
class BlockTransfer : private IoOp {
 public:
  virtual ~BlockTransfer() = default;
  virtual void OnDone() = 0;  // on the control thread, from Poll; status() is set

  const absl::Status& status() const { return IoOp::status; }
  BlockIndex block() const { return what_.block; }
  MemoryView data() const { return data_; }  // the bytes of the block itself
  const BlockPieces& pieces() const { return *pieces_; }

 private:
  friend class BlockStore;
  PinnedBlock what_;  // the bytes that come, or go; not pinned unless of_pin_
  const Drive* drive_ = nullptr;
  TimePoint queued_{0};
  MemoryView data_;
  const BlockPieces* pieces_ = nullptr;
  std::vector<uint64_t> checksums_;  // by piece; has room for any block's
  bool of_pin_ = false;  // a read of a pinned generation, beside the block's other transfers
  bool sealed_ = false;  // a write whose checksums are those of its bytes
};

// Of a block's pieces, from `first` to before `last`.
struct PieceRange {
  uint32_t first = 0;
  uint32_t last = 0;
};

enum class WritePlace : uint8_t {
  kInPlace,  // unless the block's generation is pinned
  kElsewhere
};

class BlockStore {
 public:
  // `engine` (not owned) was made over the files of `table`. `clock`, `metrics` and `trace` are not
  // owned.
  BlockStore(SegmentTable table, IoEngine* engine, const IoEngine::Limits& limits, Clock* clock,
             Metrics* metrics, TraceEvents* trace);

  size_t block_count() const { return blocks_.size(); }
  Bytes extent_length(BlockIndex block) const {  // what a buffer must hold
    return extents_.extent(blocks_[block.value()].current).length;
  }
  // Where its bytes lie now. Changes with a write elsewhere only.
  const Extent& extent(BlockIndex block) const {
    return extents_.extent(blocks_[block.value()].current);
  }
  DriveIndex drive(BlockIndex block) const {
    return extents_.drive(blocks_[block.value()].current);
  }

  bool was_written(BlockIndex block) const {  // once, if not successfully
    return blocks_[block.value()].last_generation > 0;
  }

  // Reads `block` into `buffer`. At most one transfer of a block at a time (checked).
  void StartRead(BlockTransfer* transfer, BlockIndex block, MemoryView buffer, IoPriority priority);

  // Any thread, on a transfer whose read ended ok. Errors: DataLoss naming block, generation,
  // drive, file, and the offset of the first piece that is wrong.
  static absl::Status Verify(const BlockTransfer& transfer);
  // The same of some pieces; of one, the sums of whose bytes as they were read are `sums`; and of
  // the padding.
  static absl::Status VerifyPieces(const BlockTransfer& transfer, PieceRange pieces);
  static absl::Status VerifyPiece(const BlockTransfer& transfer, uint32_t piece,
                                  const StripeSums& sums);
  static absl::Status VerifyPadding(const BlockTransfer& transfer);

  // Prepares `transfer` to write the next generation of `block` from `buffer`. If it must go
  // elsewhere and its drive has no spare extent, the write ends, when started, as one that failed
  // does: with ResourceExhausted naming the drive and what it lacks. Control thread.
  void PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                    WritePlace place = WritePlace::kInPlace);
  // Any thread, once the bytes are final: computes the checksums and zeroes the padding.
  static void Seal(BlockTransfer* transfer);
  // The same of some pieces; of one, the sums of whose bytes are `sums`. After all pieces, EndSeal.
  static void SealPieces(BlockTransfer* transfer, PieceRange pieces);
  static void SealPiece(BlockTransfer* transfer, uint32_t piece, const StripeSums& sums);
  static void EndSeal(BlockTransfer* transfer);
  // Gives up a prepared write that is not going to be started. Control thread.
  void Cancel(BlockTransfer* transfer);
  // Control thread; the transfer was prepared and sealed.
  void StartWrite(BlockTransfer* transfer, IoPriority priority);

  // Pins the present generation of `block`. A write elsewhere that is on its way makes the next.
  // Errors: FailedPrecondition if the block holds nothing, or is about to be written in place.
  absl::StatusOr<PinnedBlock> Pin(BlockIndex block);
  // `pin` came from Pin, and is not to be used again.
  void Unpin(const PinnedBlock& pin);
  // Reads what is pinned into `buffer`. Several at a time, also while the block has a transfer.
  void StartRead(BlockTransfer* transfer, const PinnedBlock& pin, MemoryView buffer,
                 IoPriority priority);

  // Submits what is queued, hands out what has finished (calling OnDone of each), waits until
  // `deadline` for the first if none has, or until woken. Returns how many transfers ended.
  size_t Poll(Deadline deadline);

  bool idle() const { return queue_.size() == 0 && engine_->in_flight() == 0 && refused_.empty(); }

  // The transfers that have begun and not ended, by file.
  struct UnderWay {
    size_t reads = 0;
    size_t writes = 0;
  };
  const std::vector<UnderWay>& under_way() const { return under_way_; }

  // Of one drive. The numbers may be read at any time, from any thread.
  struct DriveState {
    uint32_t in_flight_max = 0;  // its share of the engine's
    Bytes extents;               // on it
    Counter reads;
    Counter read_bytes;
    Counter writes;
    Counter write_bytes;
    Counter failed;           // transfers
    Histogram queue_wait_ns;  // from Start... until the engine has it
    Histogram read_ns;        // from then on
    Histogram write_ns;
  };
  const std::vector<DriveState>& drive_states() const { return drive_states_; }
  const std::vector<Drive>& drives() const { return table_.drives; }
  void ResetCounters();  // of the drives; any thread

  const ExtentAllocator& extents() const { return extents_; }

 private:
  struct Block {
    ExtentIndex current;           // where the generation lies, if there is one, or the next may
    ExtentIndex next = kNoExtent;  // where the write that is prepared or on its way goes
    uint64_t generation = 0;       // 0: never written, or its last write in place failed
    uint64_t last_generation = 0;
    bool busy = false;
  };
  void Prepare(BlockTransfer* transfer, IoKind kind, const PinnedBlock& what, MemoryView buffer);
  void Occupy(BlockIndex block);
  void Start(BlockTransfer* transfer, IoPriority priority);
  void Refuse(BlockTransfer* transfer, absl::Status status);
  absl::Status NothingToRead(BlockIndex block) const;
  absl::Status NoSpare(const BlockTransfer& transfer) const;
  void EndWrite(const BlockTransfer& transfer);
  void End(BlockTransfer* transfer);
  void Count(const BlockTransfer& transfer);
  void MakeChecksums();
  std::span<uint64_t> ChecksumsOf(ExtentIndex extent, const BlockPieces& pieces) {
    return std::span(checksums_).subspan(first_checksum_[extent.value()], pieces.count());
  }
  size_t* UnderWayLike(const BlockTransfer& transfer);

  const SegmentTable table_;
  ExtentAllocator extents_;
  IoEngine* const engine_;
  IoQueue queue_;
  std::vector<Block> blocks_;
  std::vector<size_t> first_checksum_;  // by extent, and behind the last one
  std::vector<uint64_t> checksums_;     // of the pieces of what each extent holds
  size_t pieces_max_ = 0;               // of a block
  std::vector<UnderWay> under_way_;
  std::vector<DriveState> drive_states_;
  std::vector<IoOp*> done_;      // room for one Poll
  IntrusiveList<IoOp> refused_;  // what can't even begin, to be handed out by Poll
  Clock* const clock_;
  TraceEvents* const trace_;
  TrackId read_track_ = 0;
  TrackId write_track_ = 0;
  Counter* const read_bytes_;
  Counter* const write_bytes_;
  Counter* const reads_;
  Counter* const writes_;
};

}  // namespace sluice

#endif  // SLUICE_NVME_BLOCK_STORE_H_
