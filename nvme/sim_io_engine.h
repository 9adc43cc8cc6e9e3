// nvme/sim_io_engine.h
//
// An IoEngine in virtual time over files that live in RAM. A write takes its bytes from the
// caller's buffer at a moment drawn between submission and completion, and a read delivers its
// bytes likewise, so a buffer that is touched while the engine has it shows as wrong data. Poll
// advances the SimWorld until an operation ends, the world was woken, or the deadline. What goes
// wrong, SimFaults says. For tests; not linked into the library.

#ifndef SLUICE_NVME_SIM_IO_ENGINE_H_
#define SLUICE_NVME_SIM_IO_ENGINE_H_

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/sim_world.h"
#include "nvme/drives.h"
#include "nvme/io_engine.h"

namespace sluice {

struct SimIoOptions {
  // Of each drive, shared by its reads and writes.
  std::vector<double> bytes_per_second = {3e9};
  std::vector<DriveIndex> file_drive;  // by file; empty: all are on the first drive
  Nanos latency_min = Nanos(50'000);
  Nanos latency_max = Nanos(500'000);
  Bytes alignment{1};  // of memory, offset and length, as of a file with direct I/O
  // Told when there is something to be polled for, where several engines share a world; it is not
  // owned. Null: the world, whom Poll asks.
  Waker* waker = nullptr;
};

// Files of the given sizes, full of a byte pattern. An operation that overlaps one in flight in the
// same file (unless both are reads) or lies outside its file ends with Internal: only a bug above
// can cause it. An unaligned one ends with InvalidArgument, as in every engine.
std::unique_ptr<IoEngine> MakeSimIoEngine(const SimIoOptions& options,
                                          std::span<const Bytes> file_sizes,
                                          const IoEngine::Limits& limits, SimWorld* world);

}  // namespace sluice

#endif  // SLUICE_NVME_SIM_IO_ENGINE_H_
