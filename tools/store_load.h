// tools/store_load.h
//
// Blocks moved through a BlockStore as an update moves them: read and verified, sealed and written,
// or both, a few at a time, in turn around the store, checksums by a worker beside the thread that
// has the engine. What is measured is the whole way.
//
// What lies in the files may be overwritten by others between two runs (Spoil): a block that was
// not written here since is summed up as any other, and not judged.
//
// Threads: one, the engine's owner.

#ifndef SLUICE_TOOLS_STORE_LOAD_H_
#define SLUICE_TOOLS_STORE_LOAD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/executor.h"
#include "core/histogram.h"
#include "core/types.h"
#include "nvme/block_store.h"
#include "tools/fio.h"

namespace sluice::tools {

struct StoreLoadResult {
  Bytes bytes;
  double seconds = 0;
  double cpu_seconds = 0;  // of the whole process meanwhile
};

class StoreLoad {
 public:
  // `store` over `engine`, neither owned, of blocks of one size. `buffers`: memory for two blocks
  // or more. Errors: those of making a worker.
  static absl::StatusOr<std::unique_ptr<StoreLoad>> Create(BlockStore* store, IoEngine* engine,
                                                           const std::vector<MemoryView>& buffers,
                                                           const Clock* clock);
  ~StoreLoad();

  // Moves blocks for `seconds`; without them, every block once. Latency of each transfer, in
  // nanoseconds, is added to `latency`. Errors: those of transfers and of Verify, the first of
  // them.
  absl::StatusOr<StoreLoadResult> Run(IoMode mode, std::optional<double> seconds,
                                      Histogram* latency);

  // Others write to the files from now on.
  void Spoil() { written_.assign(written_.size(), false); }

 private:
  class Slot;
  StoreLoad(BlockStore* store, Waker* waker, std::unique_ptr<Executor> worker, const Clock* clock);
  bool Begin(Slot* slot);  // another block; false: there is none to begin

  BlockStore* const store_;
  const Clock* const clock_;
  std::vector<bool> written_;  // by block: by this load, since the last Spoil
  uint32_t next_ = 0;          // the block that is begun next

  // Of the run that is on.
  IoMode mode_ = IoMode::kRead;
  Deadline end_ = kForever;
  size_t blocks_left_ = 0;
  Histogram* latency_ = nullptr;
  int64_t moved_ = 0;
  absl::Status status_;
  size_t under_way_ = 0;
  std::vector<std::unique_ptr<Slot>> slots_;
  Inbox inbox_;
  std::unique_ptr<Executor> worker_;  // ends before what its tasks use
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_STORE_LOAD_H_
