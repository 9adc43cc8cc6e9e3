// offload/sim/recording.h
//
// A run as it was recorded (OffloadRuntime::RecordingJson): the model, the plan's inputs, the
// rates that were measured, and the calls of its last step. It comes from a file, so everything in
// it is checked here; what is read can be replayed.

#ifndef SLUICE_OFFLOAD_SIM_RECORDING_H_
#define SLUICE_OFFLOAD_SIM_RECORDING_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "offload/plan/floor.h"
#include "offload/run/call_record.h"
#include "offload/run/factory.h"

namespace sluice {

struct Recording {
  static constexpr size_t kUnitsMax = 1 << 20;
  static constexpr size_t kTensorsMax = 1 << 22;

  ModelSpec spec;
  RuntimeConfig config;  // budgets, types, options of the plan, workers; a path for each drive
  bool callers_help = false;
  bool on_gpu = false;                 // compute ran on streams: its times are in no call
  std::optional<HardwareRates> rates;  // of whoever set some
  std::optional<double> step_seconds;  // the median
  std::vector<RecordedCall> calls;     // of a step, which ends with one of kStep
};

// Errors: InvalidArgument naming what of `json` is wrong; FailedPrecondition for what can't be
// replayed: several ranks, parameters in the caller's memory, or no calls.
absl::StatusOr<Recording> ReadRecording(const nlohmann::ordered_json& json);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_RECORDING_H_
