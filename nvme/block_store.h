// nvme/block_store.h
//
// A BlockStore reads and writes numbered blocks over an IoEngine, knows the generation, checksum
// and extent of each, and orders what is submitted: each drive has its share of the engine's
// places, urgent transfers go first, else first come.
//
// A block has a generation, 0 before its first write; each write makes the next one. Its checksum
// is seeded with block and generation and lives in the table here, not in the block. Checksums are
// computed by whoever has the bytes in cache: the writer calls Seal before StartWrite, the reader
// calls Verify after the read; both are thread-safe and touch only the transfer. A read that was
// not verified must not be used.
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
// Threads: all but Seal, Verify and the counters belong to one thread, the control thread.
// Allocates at creation only.

#ifndef SLUICE_NVME_BLOCK_STORE_H_
#define SLUICE_NVME_BLOCK_STORE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
  uint64_t checksum = 0;
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

 private:
  friend class BlockStore;
  PinnedBlock what_;  // the bytes that come, or go; not pinned unless of_pin_
  const Drive* drive_ = nullptr;
  MemoryView data_;
  bool of_pin_ = false;  // a read of a pinned generation, beside the block's other transfers
  bool sealed_ = false;  // a write whose checksum is that of its bytes
};

enum class WritePlace : uint8_t {
  kInPlace,  // unless the block's generation is pinned
  kElsewhere
};

class BlockStore {
 public:
  // `engine` (not owned) was made over the files of `table`. `metrics` and `trace` are not owned.
  BlockStore(SegmentTable table, IoEngine* engine, const IoEngine::Limits& limits, Metrics* metrics,
             TraceEvents* trace);

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
  // drive, file and offset.
  static absl::Status Verify(const BlockTransfer& transfer);

  // Prepares `transfer` to write the next generation of `block` from `buffer`. If it must go
  // elsewhere and its drive has no spare extent, the write ends, when started, as one that failed
  // does: with ResourceExhausted naming the drive and what it lacks. Control thread.
  void PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer,
                    WritePlace place = WritePlace::kInPlace);
  // Any thread, once the bytes are final: computes the checksum and zeroes the padding.
  static void Seal(BlockTransfer* transfer);
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
    Counter failed;  // transfers
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
    uint64_t checksum = 0;
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
  size_t* UnderWayLike(const BlockTransfer& transfer);

  const SegmentTable table_;
  ExtentAllocator extents_;
  IoEngine* const engine_;
  IoQueue queue_;
  std::vector<Block> blocks_;
  std::vector<UnderWay> under_way_;
  std::vector<DriveState> drive_states_;
  std::vector<IoOp*> done_;      // room for one Poll
  IntrusiveList<IoOp> refused_;  // what can't even begin, to be handed out by Poll
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
