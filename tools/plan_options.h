// tools/plan_options.h
//
// What `sluice plan` was given on its command line, and what a configuration file says of the same.

#ifndef SLUICE_TOOLS_PLAN_OPTIONS_H_
#define SLUICE_TOOLS_PLAN_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "offload/plan/placement.h"
#include "tools/json_file.h"
#include "tools/model_shape.h"

namespace sluice::tools {

// Texts of the command line were checked when it was parsed. Empty: not given.
struct PlanOptions {
  std::string what;    // either of the next two
  std::string model;   // a config.json of Transformers, or safetensors
  std::string config;  // a ds_config.json
  std::string params;
  ModelShape shape;
  std::string hbm, pinned, nvme;
  std::vector<std::string> nvme_paths;
  std::string tuned;  // a file of `sluice tune`
  std::string dtype;
  std::string grad_dtype;
  std::string device;
  int64_t chunk_elements = 0;
  // Of a plan for several GPUs. Budgets are then of a GPU, and of a host.
  int64_t gpus = 0;           // 0: no such plan
  int64_t gpus_per_host = 0;  // 0: chosen
  int headroom_percent = 20;
  // By a configuration only.
  Tier lowest_param_tier = Tier::kNvme;
  Tier lowest_state_tier = Tier::kNvme;
  std::optional<int64_t> resident_elements_max;
  bool json = false;

  // Whether anything may go to NVMe. Neither the path nor the space needs to be there.
  bool has_nvme() const { return !nvme_paths.empty() || !nvme.empty(); }
};

// Takes from DeepSpeed's JSON, as initialize() reads it, what the command line did not give: types,
// how far down things may go, and the keys of the section "sluice". Other keys are not looked at.
// source: for messages. Errors: InvalidArgument naming source and key.
absl::Status ApplyDsConfig(const Json& config, const std::string& source, PlanOptions* options);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_PLAN_OPTIONS_H_
