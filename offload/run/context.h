// offload/run/context.h
//
// What the parts of one runtime share: the model, where it lies, the seams, and where to report.
// Made by the runtime, which owns or outlives all of it; read by its parts on the control thread.

#ifndef SLUICE_OFFLOAD_RUN_CONTEXT_H_
#define SLUICE_OFFLOAD_RUN_CONTEXT_H_

#include <atomic>
#include <functional>

#include "core/clock.h"
#include "core/device.h"
#include "core/event.h"
#include "core/executor.h"
#include "core/metrics.h"
#include "core/trace_events.h"
#include "nvme/block_store.h"
#include "offload/plan/layout.h"
#include "offload/plan/param_pieces.h"
#include "offload/plan/placement.h"
#include "offload/run/tier_memory.h"
#include "optim/update_rule.h"

namespace sluice {

// Where the caller keeps a tensor's parameter: its elements in `type`, in host memory.
struct ParamPlace {
  std::byte* data = nullptr;
  FloatType type = FloatType::kF32;
};

struct Context {
  const ModelLayout* layout;
  const Placement* placement;
  const ParamPieces* pieces;
  const StateUpdate* update;
  TierMemory* memory;
  BlockStore* store;
  Executor* executor;
  Device* device;
  Clock* clock;
  Inbox* inbox;
  Metrics* metrics;
  TraceEvents* trace;
  bool overlap = true;
  // Whether the loop should be woken for what it sees at its next turn anyway. Null: it should.
  const std::atomic<bool>* heeds_calls = nullptr;
  // The first error of a deferred operation: the runtime has failed. May be called again; only the
  // first counts.
  std::function<void(const absl::Status&)> fail;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CONTEXT_H_
