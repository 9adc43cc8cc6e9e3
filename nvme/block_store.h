// nvme/block_store.h
//
// A BlockStore reads and writes numbered blocks over an IoEngine, knows the generation and checksum
// of each, and orders what is submitted: at most the engine's queue in the kernel, urgent transfers
// first, else first come.
//
// A block has a generation, 0 before its first write; each completed write makes the next one. Its
// checksum is seeded with block and generation and lives in the table here, not in the block.
// Checksums are computed by whoever has the bytes in cache: the writer calls Seal before
// StartWrite, the reader calls Verify after the read; both are thread-safe and touch only the
// transfer. A read that was not verified must not be used.
//
// A failed transfer ends with its status and poisons nothing else: a block whose write failed keeps
// no valid generation (reads of it fail with DataLoss until it is written again), all others stay
// readable.
//
// Threads: all but Seal and Verify belong to one thread, the control thread. Allocates at creation
// only.

#ifndef SLUICE_NVME_BLOCK_STORE_H_
#define SLUICE_NVME_BLOCK_STORE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/metrics.h"
#include "core/trace_events.h"
#include "core/types.h"
#include "nvme/io_engine.h"
#include "nvme/io_queue.h"
#include "nvme/segments.h"

namespace sluice {

// One block on its way, owned by the caller from Start... until OnDone. Its buffer holds at least
// the extent's length; the block's own bytes come first, what follows is padding.
class BlockTransfer : private IoOp {
 public:
  virtual ~BlockTransfer() = default;
  virtual void OnDone() = 0;  // on the control thread, from Poll; status() is set

  const absl::Status& status() const { return IoOp::status; }
  BlockIndex block() const { return block_; }
  MemoryView data() const { return data_; }  // the bytes of the block itself

 private:
  friend class BlockStore;
  BlockIndex block_;
  MemoryView data_;
  uint64_t generation_ = 0;  // that the bytes have, or will have
  uint64_t checksum_ = 0;    // of that generation
  bool sealed_ = false;      // a write whose checksum is that of its bytes
};

class BlockStore {
 public:
  // `engine` (not owned) was made over the files of `table`. `metrics` and `trace` are not owned.
  BlockStore(SegmentTable table, std::vector<Bytes> block_sizes, IoEngine* engine,
             const IoEngine::Limits& limits, Metrics* metrics, TraceEvents* trace);

  size_t block_count() const { return blocks_.size(); }
  Bytes extent_length(BlockIndex block) const {  // what a buffer must hold
    return table_.extents[block.value()].length;
  }

  bool was_written(BlockIndex block) const {  // once, if not successfully
    return blocks_[block.value()].last_generation > 0;
  }

  // Reads `block` into `buffer`. At most one transfer of a block at a time (checked).
  void StartRead(BlockTransfer* transfer, BlockIndex block, MemoryView buffer, IoPriority priority);

  // Any thread, on a transfer whose read ended ok. Errors: DataLoss naming block, generation, file
  // and offset.
  static absl::Status Verify(const BlockTransfer& transfer);

  // Prepares `transfer` to write the next generation of `block` from `buffer`. Control thread.
  void PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer);
  // Any thread, once the bytes are final: computes the checksum and zeroes the padding.
  static void Seal(BlockTransfer* transfer);
  // Gives up a prepared write that is not going to be started. Control thread.
  void Cancel(BlockTransfer* transfer);
  // Control thread; the transfer was prepared and sealed.
  void StartWrite(BlockTransfer* transfer, IoPriority priority);

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

 private:
  struct Block {
    uint64_t generation = 0;  // 0: never written, or its last write failed
    uint64_t last_generation = 0;
    uint64_t checksum = 0;
    bool busy = false;
  };
  void Prepare(BlockTransfer* transfer, BlockIndex block, MemoryView buffer, IoKind kind);
  void End(BlockTransfer* transfer);
  void Count(const BlockTransfer& transfer);
  size_t* UnderWayLike(const BlockTransfer& transfer);

  const SegmentTable table_;
  const std::vector<Bytes> sizes_;
  IoEngine* const engine_;
  IoQueue queue_;
  std::vector<Block> blocks_;
  std::vector<UnderWay> under_way_;
  std::vector<IoOp*> done_;      // room for one Poll
  IntrusiveList<IoOp> refused_;  // reads of blocks that hold nothing, to be handed out by Poll
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
