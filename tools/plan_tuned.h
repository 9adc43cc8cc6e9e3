// tools/plan_tuned.h
//
// A file of `sluice tune` in a plan: where things go, in which pieces, and how long the drives take
// for them.
//
// Keys of a plan with a tuned file, beside those of a plan:
//   tuned.file                   as it was given
//   tuned.nvme_seconds           that the drives take for a step's traffic at the file's rates
//   tuned.warnings               why it may not be for this machine or these drives

#ifndef SLUICE_TOOLS_PLAN_TUNED_H_
#define SLUICE_TOOLS_PLAN_TUNED_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "nvme/tuned.h"
#include "offload/plan/traffic.h"
#include "offload/run/factory.h"
#include "tools/json_file.h"
#include "tools/plan_options.h"

namespace sluice::tools {

class PlanTuned {
 public:
  // Nothing if no file was given. Errors: those of reading it; InvalidArgument with several GPUs.
  absl::Status Apply(const PlanOptions& options, RuntimeConfig* config);
  explicit operator bool() const { return settings_.has_value(); }

  std::string TimeText(const StepTraffic& traffic) const;
  Json AsJson(const StepTraffic& traffic, const RuntimeConfig& config) const;

 private:
  double SecondsOf(const StepTraffic& traffic) const;

  std::optional<TunedSettings> settings_;  // whose rates count: those of the drives together
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_PLAN_TUNED_H_
