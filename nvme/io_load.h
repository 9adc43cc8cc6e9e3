// nvme/io_load.h
//
// An IoLoad moves bytes over an IoEngine as the product does, in order to measure it: one owner
// thread, transfers of one size, so many in flight, reads and writes in turn. Files are swept in
// stretches of a few MiB, in a shuffled order, each from its beginning to its end; reads and writes
// have a place of their own in that order, which the next run goes on from, writes a little behind
// reads. What one transfer is about to touch no other one in flight touches.
//
// Data can be checked: what is written then depends on file, place and how often it was written,
// and what is read must be what was written there last. It costs about as much CPU as a copy. Files
// are to be written once, whole, before a read of them is worth measuring: space that is only
// reserved reads as zeros that no drive delivers.
//
// Threads: one, the engine's owner. Allocates at creation and at the beginning of a run.

#ifndef SLUICE_NVME_IO_LOAD_H_
#define SLUICE_NVME_IO_LOAD_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/histogram.h"
#include "core/types.h"
#include "nvme/io_engine.h"

namespace sluice {

enum class IoCheck : uint8_t {
  kNone,  // what is written is anything, but nothing that compresses
  kData
};

struct IoPattern {
  Bytes request = KiB(512);  // of each transfer: a multiple of 4096 and of the files' alignment
  uint32_t in_flight = 16;   // transfers, at most; fewer if the engine or the memory allows fewer
  double read_share = 1;     // of the bytes: 1 reads only, 0 writes only
  Bytes run = MiB(2);        // of one kind, before the other has its turn
  IoCheck check = IoCheck::kNone;
  // No transfer begins when so many bytes have begun, when the time has come, or when `stop` (not
  // owned) is true; what has begun is waited for.
  Bytes bytes_max = Bytes(INT64_MAX);
  Deadline deadline = kForever;
  const std::atomic<bool>* stop = nullptr;
};

struct IoLoadResult {
  struct Kind {
    Bytes bytes;
    Histogram latency_ns;  // of each transfer, from submission to completion
  };
  std::array<Kind, 2> kinds;  // by IoKind
  double seconds = 0;         // from the first submission to the last completion
  double cpu_seconds = 0;     // of the whole process meanwhile, its kernel threads included
  Bytes checked;              // of the bytes read, those that were known and found right

  const Kind& reads() const { return kinds[static_cast<size_t>(IoKind::kRead)]; }
  const Kind& writes() const { return kinds[static_cast<size_t>(IoKind::kWrite)]; }
  Bytes bytes() const { return reads().bytes + writes().bytes; }
  double bytes_per_second() const {
    return seconds > 0 ? static_cast<double>(bytes().value()) / seconds : 0;
  }
};

class IoLoad {
 public:
  struct Options {
    Bytes stretch = MiB(8);  // at least the largest request; a multiple of 4096
    uint64_t seed = 1;       // of the order, and of what is written
  };

  // Over files of these sizes, by index, each at least a stretch long; what is left behind the last
  // whole stretch is not touched. `memory` (not owned) is what transfers use, and is filled here:
  // at a multiple of 4096, and best on huge pages.
  IoLoad(std::span<const Bytes> file_sizes, MemoryView memory, const Clock* clock,
         const Options& options);
  IoLoad(std::span<const Bytes> file_sizes, MemoryView memory, const Clock* clock)
      : IoLoad(file_sizes, memory, clock, Options()) {}

  // What a sweep covers. The first run, if it writes so much in requests that divide a stretch,
  // writes everything once.
  Bytes area() const { return Bytes(static_cast<int64_t>(order_.size()) * stretch_.value()); }

  // `engine` was made over these files and has nothing in flight. Errors: those of transfers, the
  // first of them; DataLoss naming file and offset if what was read is not what was written;
  // Cancelled if it was stopped; InvalidArgument if the request is not a multiple of 4096, larger
  // than a stretch or than the memory. What was in flight has ended in any case.
  absl::StatusOr<IoLoadResult> Run(const IoPattern& pattern, IoEngine* engine);

 private:
  struct Stretch {
    FileIndex file;
    FileOffset offset;
    size_t first_cell;  // of passes_
  };
  struct Place {
    size_t stretch = 0;  // in order_
    Bytes offset;        // in it
  };
  class Running;

  const Clock* const clock_;
  const MemoryView memory_;
  const Bytes stretch_;
  const uint64_t seed_;
  std::vector<Stretch> order_;
  std::array<Place, 2> next_;     // by IoKind
  std::vector<uint32_t> passes_;  // by 4096 bytes: how often they were written; 0: not known
  uint32_t pass_ = 0;             // of the last write that is to be checked
  std::vector<uint64_t> tile_;    // what every 4096 bytes are made of
};

}  // namespace sluice

#endif  // SLUICE_NVME_IO_LOAD_H_
