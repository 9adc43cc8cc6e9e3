// offload/plan/ram_need.h
//
// Whether the memory that a runtime is about to take is there. The kernel gives out addresses
// freely and ends the process that then uses them, so this is asked before anything is populated.
// Pure.

#ifndef SLUICE_OFFLOAD_PLAN_RAM_NEED_H_
#define SLUICE_OFFLOAD_PLAN_RAM_NEED_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/budget.h"
#include "core/types.h"

namespace sluice {

// What takes memory of the machine and the cgroup.
struct RamNeed {
  Bytes pinned;  // planned
  Bytes hbm;     // of the host device, unless it was supplied
  Bytes files;   // swap files on file systems in RAM
  Bytes sum() const { return pinned + hbm + files; }
};

// What a runtime takes beside `arenas`: tables of pages, threads, its own records.
constexpr Bytes RamBeside(Bytes arenas) { return arenas / 256 + MiB(8); }

// The largest sum to ask for: what is available without what a runtime takes beside it, and without
// kRamMoves.
Bytes RamForArenas(const MemoryLimits& limits);

// What is available is never quite the same twice. A sum that is larger by so much is let through,
// so that one which was named a moment ago is.
inline constexpr Bytes kRamMoves = MiB(8);

// Errors: ResourceExhausted saying what is needed, what there is, where the limit comes from, and
// the largest that would do.
absl::Status CheckRam(const RamNeed& need, const MemoryLimits& limits);

// The same where the limits may not be known: then what was asked for is taken as it is, and
// *unchecked says so.
absl::Status CheckRamIfKnown(const RamNeed& need, const absl::StatusOr<MemoryLimits>& limits,
                             std::string* unchecked);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_RAM_NEED_H_
