// tools/ckpt_export.h
//
// The weights of a checkpoint as Hugging Face's libraries load them: model.safetensors, or
// model-00001-of-0000n.safetensors and model.safetensors.index.json. Masters, rounded to the type
// that is asked for; of what was frozen its own values. Names and shapes are what rank 0's
// model.json says; without it a tensor has its saved name and one dimension.
//
// Streams: takes memory for the manifests and a few pieces. Threads: one at a time.

#ifndef SLUICE_TOOLS_CKPT_EXPORT_H_
#define SLUICE_TOOLS_CKPT_EXPORT_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/grid.h"
#include "core/types.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/reader.h"

namespace sluice::tools {

struct ExportOptions {
  std::string out;                         // a directory, made if it isn't there
  std::optional<FloatType> type;           // none: each as the model computes with it
  Bytes shard_max = Bytes(5'000'000'000);  // of a file; one tensor may have more
};

struct Exported {
  std::vector<std::string> files;  // the index is the last, if there is one
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  std::vector<std::string> left_out;  // tensors that the checkpoint lacks, or a file can't have
  bool has_shapes = false;            // model.json was there
};

// progress: hears of bytes out of how many; false stops (Cancelled). Errors: those of reading;
// InvalidArgument if model.json says of a tensor what can't be; AlreadyExists if a file of such a
// name is there. Nothing is left then.
absl::StatusOr<Exported> ExportCheckpoint(
    Files* files, CheckpointReader* reader, const ExportOptions& options,
    const std::function<bool(uint64_t done, uint64_t all)>& progress);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_CKPT_EXPORT_H_
