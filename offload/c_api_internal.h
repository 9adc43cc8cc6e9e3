// offload/c_api_internal.h
//
// What the C ABI shares with the test library that creates runtimes over simulated seams.

#ifndef SLUICE_OFFLOAD_C_API_INTERNAL_H_
#define SLUICE_OFFLOAD_C_API_INTERNAL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "offload/factory.h"
#include "offload/sluice.h"

namespace sluice::c_api {

// Remembers the words of an error for sluice_last_error, and translates the code.
sluice_status Return(const absl::Status& status);

// Errors: InvalidArgument for what is not a model's handle.
absl::StatusOr<std::shared_ptr<ModelSpec>> GetModel(sluice_model model);

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* options);
sluice_runtime AddRuntime(std::unique_ptr<Runtime> runtime);

}  // namespace sluice::c_api

#endif  // SLUICE_OFFLOAD_C_API_INTERNAL_H_
