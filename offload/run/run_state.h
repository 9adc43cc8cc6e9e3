// offload/run/run_state.h
//
// What of a run is not in any tensor, as a checkpoint has it: the loss scale.
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_RUN_RUN_STATE_H_
#define SLUICE_OFFLOAD_RUN_RUN_STATE_H_

#include <string>

#include "absl/status/statusor.h"
#include "optim/loss_scale.h"

namespace sluice {

inline constexpr const char* kRunStateFile = "run.json";  // attached by every rank

std::string RunStateText(const LossScaler::State& state);
// Errors: DataLoss if it isn't what RunStateText makes.
absl::StatusOr<LossScaler::State> ParseRunState(const std::string& text);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RUN_STATE_H_
