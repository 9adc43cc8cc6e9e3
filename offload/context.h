// offload/context.h
//
// What the parts of one runtime share: the model, where it lies, the seams, and where to report.
// Made by the Runtime, which owns or outlives all of it; read by its parts on the control thread.

#ifndef SLUICE_OFFLOAD_CONTEXT_H_
#define SLUICE_OFFLOAD_CONTEXT_H_

#include <functional>

#include "core/clock.h"
#include "core/device.h"
#include "core/event.h"
#include "core/executor.h"
#include "core/metrics.h"
#include "core/trace_events.h"
#include "nvme/block_store.h"
#include "offload/layout.h"
#include "offload/placement.h"
#include "offload/tier_memory.h"

namespace sluice {

// Bugs that tests plant to show that the simulation finds them. Only C++ code that makes a Runtime
// itself can ask for one. Each is one comparison per chunk, read, unit or step.
enum class PlantedBug : uint8_t {
  kNone,
  kReuseBeforeWritten,  // a buffer is lent again while it is being written to the drive
  kStaleGeneration,     // a unit's copy in HBM outlives the update of the unit
  kLostWrite,           // updated states are taken for written, and are not
  kSwappedBlocks,       // a chunk's states are read from its neighbour's block
  kDroppedEvent,        // a read that ended before the step is forgotten
  kDoubleRelease,       // a buffer is given back twice
  kUnverifiedRead,      // what the drive returns is taken as it comes
  kEvictViewed,         // a slot is reused while views of it are alive
};

// Where the caller keeps a tensor's parameter: its elements in `type`, in host memory.
struct ParamPlace {
  std::byte* data = nullptr;
  FloatType type = FloatType::kF32;
};

struct Context {
  const ModelLayout* layout;
  const Placement* placement;
  TierMemory* memory;
  BlockStore* store;
  Executor* executor;
  Device* device;
  Clock* clock;
  Inbox* inbox;
  Metrics* metrics;
  TraceEvents* trace;
  bool overlap = true;
  PlantedBug planted_bug = PlantedBug::kNone;
  // The first error of a deferred operation: the runtime has failed. May be called again; only the
  // first counts.
  std::function<void(const absl::Status&)> fail;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CONTEXT_H_
