// offload/sim/replay.h
//
// A recorded step, done again in virtual time with other budgets and on other hardware: a whole
// runtime, which plans and decides as ever, over simulated drives, workers and a link. The caller
// makes the same calls, and is on its own for as long as it was between them.
//
// A large model is scaled down, and what is left of it takes as much longer: see many_ranks.h. The
// plan, its traffic and its floor are those of the model as it is.
//
// Threads: one. Takes the memory of the model that is simulated, about 16 bytes an element.

#ifndef SLUICE_OFFLOAD_SIM_REPLAY_H_
#define SLUICE_OFFLOAD_SIM_REPLAY_H_

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "offload/plan/floor.h"
#include "offload/run/step_times.h"
#include "offload/sim/recording.h"

namespace sluice {

struct ReplayOptions {
  Budgets budgets;
  // Compute is as recorded, but on a GPU, of which nothing but forward_seconds and backward_seconds
  // is known. 0 is infinitely fast.
  HardwareRates rates;
  int64_t elements_max = int64_t{1} << 25;  // of a model that is not scaled down
  int steps = 6;                            // that are measured, after two that are not
};

struct Replay {
  double step_seconds = 0;
  double own_seconds = 0;                       // of it, in which the caller was on its own
  std::array<double, kWaits> waited_seconds{};  // of a step, by WaitedFor
  FloorTerms floor;  // with the program's own time as compute, beside the workers
  StepTraffic traffic;
  Budgets planned;  // what is taken of them
  double scale = 1;
};

// Errors: FailedPrecondition for compute on a GPU without its seconds; those of the plan, and of
// the runtime.
absl::StatusOr<Replay> ReplayStep(const Recording& recording, const ReplayOptions& options);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_REPLAY_H_
