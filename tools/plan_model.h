// tools/plan_model.h
//
// Of which model `sluice plan` is.

#ifndef SLUICE_TOOLS_PLAN_MODEL_H_
#define SLUICE_TOOLS_PLAN_MODEL_H_

#include "absl/status/statusor.h"
#include "tools/command.h"
#include "tools/hf_model.h"
#include "tools/plan_options.h"

namespace sluice::tools {

void AddModelOptions(CLI::App* app, PlanOptions* options);

// The model, by a file or by numbers, and in words. What the files say, also of `options`, goes
// behind what was given. Errors: InvalidArgument, and those of files.
absl::StatusOr<HfModel> ReadModel(PlanOptions* options);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_PLAN_MODEL_H_
