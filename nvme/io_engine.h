// nvme/io_engine.h
//
// An IoEngine moves bytes between caller-owned memory and open files, asynchronously.
//
// It is the only code that talks to the kernel about file data. It knows no blocks, checksums,
// tiers or ranks; it decides nothing about order (io_queue.h does) and repairs nothing but short
// transfers and EINTR.
//
// Threads: Submit, Poll and Close belong to one thread, the owner (the first that calls one of
// them). Wake may be called from any thread. Memory: everything is allocated when the engine is
// made; Submit and Poll never allocate, and only Poll waits.

#ifndef SLUICE_NVME_IO_ENGINE_H_
#define SLUICE_NVME_IO_ENGINE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/intrusive_list.h"
#include "core/types.h"
#include "nvme/direct_file.h"

namespace sluice {

enum class IoKind : uint8_t { kRead, kWrite };

// One transfer, owned by the caller from Submit until its completion is handed out by Poll.
// `memory` and `offset` are multiples of the file's alignment (DirectFile::alignment), the length
// too.
struct IoOp {
  IoKind kind = IoKind::kRead;
  FileIndex file;  // index into the files the engine was made with
  FileOffset offset;
  MemoryView memory;
  // Written by the engine before Poll hands the operation out:
  absl::Status status;  // names kind, file, offset, length and errno
  Bytes transferred;    // equals memory.size() if and only if status is ok
  TimePoint submitted{0};
  TimePoint completed{0};

 private:
  friend class IntrusiveList<IoOp>;
  IoOp* next_ = nullptr;  // of whoever has the operation: a queue, an engine, a store
};

class IoEngine : public Waker {
 public:
  struct Limits {
    uint32_t in_flight_max = 16;  // never more operations in the kernel
    uint32_t submit_batch_max =
        2;  // more merges neighbours in the block layer, which is slower: docs/tuning.md
    // How long the kernel may refuse a call for want of memory or the like before that is an error.
    Nanos refused_max = std::chrono::seconds(30);
  };

  // Takes as many of `ops`, in order, as fit under in_flight_max; returns how many. Zero means:
  // poll first. An operation that can't be issued is handed out by Poll with its error, like any
  // other.
  virtual size_t Submit(std::span<IoOp* const> ops) = 0;

  // Hands out finished operations, at most done.size(), in order of completion; returns how many.
  // If none has finished, waits for the first one until `deadline` (kNoWait: not at all) or until
  // woken.
  virtual size_t Poll(std::span<IoOp*> done, Deadline deadline) = 0;

  // Makes a Poll that waits now, or else the next one that would wait, return. Any thread, also
  // after Close.
  void Wake() override = 0;

  virtual size_t in_flight() const = 0;  // submitted and not yet handed out

  // What was chosen and why, for `sluice doctor`: "io_uring: registered buffers and files, no
  // SQPOLL".
  virtual std::string description() const = 0;

  // Waits for what is in flight (their completions are dropped) and releases the kernel's
  // resources. A second call does nothing. Errors: that of the first dropped operation which
  // failed.
  virtual absl::Status Close() = 0;
};

enum class IoEngineKind : uint8_t { kAuto, kIoUring, kLibaio, kThreads };

// Makes an engine over `files` (not owned, outlive the engine; may be empty: the engine then only
// waits). `arenas` is the memory that transfers will use; an engine may register it, and transfers
// outside it work too. kAuto tries io_uring, then libaio if every file has direct I/O (else it
// would block in Submit), and falls back to threads; description() says why.
// Errors: Unavailable if the kind asked for can't be had, with what to change.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeIoEngine(IoEngineKind kind,
                                                       std::span<const DirectFile> files,
                                                       std::span<const MemoryView> arenas,
                                                       const IoEngine::Limits& limits,
                                                       Clock* clock);

}  // namespace sluice

#endif  // SLUICE_NVME_IO_ENGINE_H_
