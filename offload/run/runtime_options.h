// offload/run/runtime_options.h
//
// What a runtime is made of, what it is told, and what a step is asked for and answers.

#ifndef SLUICE_OFFLOAD_RUN_RUNTIME_OPTIONS_H_
#define SLUICE_OFFLOAD_RUN_RUNTIME_OPTIONS_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/openmp_waits.h"
#include "offload/run/context.h"
#include "offload/run/host_share.h"
#include "offload/run/rank_links.h"
#include "optim/adamw_rule.h"
#include "optim/loss_scale.h"

namespace sluice {

class Files;

// Who uses which of the process's cores, and why, for the report; and what was done for that.
struct CoreUse {
  int allowed = 0;  // hardware threads
  int machine = 0;
  std::string compute;  // without what openmp_waits says
  std::string update;
  std::string nodes;                          // of NUMA: what is bound, and why
  std::optional<int> node;                    // that the arenas are bound to
  bool callers_help = false;                  // who waits for a ticket updates meanwhile
  std::shared_ptr<OpenMpWaits> openmp_waits;  // of the process; none in simulation
};

// What the runtime stands on. Owned by it, except clock and host_memory, which outlive it.
struct Seams {
  Clock* clock = nullptr;
  MemoryResource* host_memory = nullptr;
  CoreUse cores;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<Device> device;
  std::string device_reason;      // why this one, for the report
  std::string ram_unchecked;      // why RAM was not, for the report; empty if it was
  SegmentTable segments;          // where the blocks of MapBlocks lie; the store takes it over
  std::vector<DirectFile> files;  // of `segments`; empty in simulation
  std::function<absl::StatusOr<std::unique_ptr<IoEngine>>(std::span<const MemoryView> arenas,
                                                          std::span<const DirectFile> files)>
      make_engine;
  RankLinks ranks;
  Files* checkpoint_files = nullptr;  // not owned; null: the real ones
  bool threaded = true;
};

// How long a runtime's end may take, part by part.
struct CloseTimes {
  Nanos drain = std::chrono::seconds(3);      // what was asked for is carried out
  Nanos settle = std::chrono::seconds(1);     // what has begun comes back
  Nanos take_down = std::chrono::seconds(6);  // threads, files and memory are given back
  Nanos all() const { return drain + settle + take_down; }
};

struct RuntimeOptions {
  Budgets budgets;  // for the report
  std::shared_ptr<const UpdateRule> rule = MakeAdamW();
  IoEngine::Limits io;
  LossScaleOptions loss_scale = {.static_scale = 1};
  bool overlap = true;
  size_t trace_spans_max = 0;
  int zero_stage = 0;  // this and the next for the report
  HostShare share;
  // Of other ranks' callers (Ranks). Operations of the links have their own (CommOptions).
  Nanos rank_timeout = std::chrono::minutes(10);
  CloseTimes close;
  Nanos stuck_after = std::chrono::seconds(10);
};

struct StepRequest {
  std::vector<Hyperparameters> groups;  // of the rule
  std::vector<ParamPlace> lent;         // by tensor; of tensors that are not lent, not looked at
  double clip_norm = 0;
};

struct StepResult {
  double grad_norm = 0;
  bool applied = false;
  double loss_scale = 1;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RUNTIME_OPTIONS_H_
