// tools/hf_model.h
//
// A model from the config.json that Transformers writes beside its weights: the shapes of all
// parameters, by arithmetic, for planning without the weights. One unit for each layer, and for the
// embeddings, the last norm and the head.

#ifndef SLUICE_TOOLS_HF_MODEL_H_
#define SLUICE_TOOLS_HF_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "offload/plan/layout.h"
#include "tools/json_file.h"

namespace sluice::tools {

struct HfModel {
  ModelSpec spec;
  std::string description;  // "llama, LlamaForCausalLM", and what of it is not counted
};

// source: of `config`, for messages. Errors: InvalidArgument naming the source and the key; for a
// model_type that isn't known here: which are, and what to give instead.
absl::StatusOr<HfModel> ModelOfHfConfig(const Json& config, const std::string& source);

// "bf16", "fp16" or "fp32", if the file says one of these of its weights; else empty.
std::string TypeOfHfConfig(const Json& config);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_HF_MODEL_H_
