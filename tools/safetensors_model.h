// tools/safetensors_model.h
//
// A model from the names and shapes of weights in safetensors files, for planning: nothing but
// their headers is read. One unit for each layer, which is a name up to its first number
// ("model.layers.3"), and for each module outside of layers.

#ifndef SLUICE_TOOLS_SAFETENSORS_MODEL_H_
#define SLUICE_TOOLS_SAFETENSORS_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "tools/hf_model.h"
#include "tools/json_file.h"

namespace sluice::tools {

// Whether it is read here, by its name: "model.safetensors", "model.safetensors.index.json".
bool IsSafetensors(const std::string& path);

// What the headers say of all tensors: of one file, or of all files that an index names. Errors:
// InvalidArgument naming the file; those of reading it; a file that an index names outside of its
// directory.
absl::StatusOr<SortedJson> ReadSafetensors(const std::string& path);

// Values that are no floating-point numbers are buffers, not parameters: the description says how
// many were not counted. source: of `header`, for messages. Errors: InvalidArgument naming source
// and tensor.
absl::StatusOr<HfModel> ModelOfSafetensors(const SortedJson& header, const std::string& source);

// "bf16", "fp16" or "fp32": the type that most parameters have, if it is one of these; else empty.
std::string TypeOfSafetensors(const SortedJson& header);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_SAFETENSORS_MODEL_H_
