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
// Threads: all but Seal, Verify and Wake belong to one thread, the control thread. Allocates at
// creation only.

#ifndef SLUICE_NVME_BLOCK_STORE_H_
#define SLUICE_NVME_BLOCK_STORE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/metrics.h"
#include "core/trace_events.h"
#include "core/types.h"
#include "nvme/io_engine.h"
#include "nvme/segments.h"

namespace sluice {

enum class IoPriority : uint8_t {
  kUrgent,
  kNormal
};  // urgent: somebody waits, or will soon, for a parameter

// One block on its way, owned by the caller from Start... until OnDone. `op.memory` is the caller's
// buffer of at least the extent's length; the block's own bytes come first, what follows is
// padding.
class BlockTransfer {
 public:
  virtual ~BlockTransfer() = default;
  virtual void OnDone() = 0;  // on the control thread, from Poll; status() is set

  const absl::Status& status() const { return op_.status; }
  BlockIndex block() const { return block_; }
  // The bytes of the block itself, in the buffer given.
  MemoryView data() const { return data_; }

 private:
  friend class BlockStore;
  friend class IoQueue;
  IoOp op_;
  BlockIndex block_;
  MemoryView data_;
  uint64_t generation_ = 0;
  uint64_t checksum_ = 0;
};

class BlockStore {
 public:
  // `engine` (not owned) was made over the files of `table`. `metrics` and `trace` (not owned) may
  // be null.
  BlockStore(SegmentTable table, std::vector<Bytes> block_sizes, IoEngine* engine,
             const IoEngine::Limits& limits, Metrics* metrics, TraceEvents* trace);

  size_t block_count() const { return blocks_.size(); }
  Bytes block_size(BlockIndex block) const;
  Bytes extent_length(BlockIndex block) const;  // what a buffer must hold

  // Reads `block` into `buffer`. At most one transfer of a block at a time (checked).
  void StartRead(BlockTransfer* transfer, BlockIndex block, MemoryView buffer, IoPriority priority);

  // Any thread, on a transfer whose read ended ok. Errors: DataLoss naming block, generation, file
  // and offset.
  static absl::Status Verify(const BlockTransfer& transfer);

  // Prepares `transfer` to write the next generation of `block` from `buffer`. Control thread.
  void PrepareWrite(BlockTransfer* transfer, BlockIndex block, MemoryView buffer);
  // Any thread, once the bytes are final: computes the checksum and zeroes the padding.
  static void Seal(BlockTransfer* transfer);
  // Control thread; the transfer was prepared and sealed.
  void StartWrite(BlockTransfer* transfer, IoPriority priority);

  // Submits what is queued, hands out what has finished (calling OnDone of each), waits until
  // `deadline` for the first if none has, or until woken. Returns how many transfers ended.
  size_t Poll(Deadline deadline);

  size_t queued() const;     // started, not yet in the kernel
  size_t in_flight() const;  // in the kernel
  bool idle() const { return queued() == 0 && in_flight() == 0; }

 private:
  // (to be completed in the implementation)
};

}  // namespace sluice

#endif  // SLUICE_NVME_BLOCK_STORE_H_
