// tools/model_shape.h
//
// A model from a few numbers, for planning without one: blocks of a GPT, or equal units.

#ifndef SLUICE_TOOLS_MODEL_SHAPE_H_
#define SLUICE_TOOLS_MODEL_SHAPE_H_

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "offload/plan/layout.h"
#include "tools/spec_builder.h"

namespace sluice::tools {

struct ModelShape {
  int64_t params = 0;  // 0: what the rest gives
  int64_t layers = 0;  // 0: chosen
  int64_t hidden = 0;  // 0: unknown
  int64_t vocab = 0;   // 0: chosen
};

inline constexpr int64_t kLayersDefault = 32;
inline constexpr int64_t kVocabDefault = 50257;

// With `hidden`: an embedding (tied to the output), `layers` transformer blocks of the usual shape
// (attention, an MLP four times as wide, two norms; biases everywhere), and a last norm; one unit
// each. Where `params` is given too, the embedding has what the blocks leave.
// Without: `params` in `layers` equal units.
// Errors: InvalidArgument saying which numbers don't go together.
absl::StatusOr<ModelSpec> MakeModelSpec(const ModelShape& shape);

// "7B", "350M", "1.3b", "7e9", "124439808", "7_000_000_000": K, M, B and T are powers of 1000. From
// 1 to 1e15, exact. Errors: InvalidArgument showing the text and an example.
absl::StatusOr<int64_t> ParseCount(std::string_view text);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_MODEL_SHAPE_H_
