// tools/saved_shapes.h
//
// What the Python side says of a checkpoint's tensors beside the library's values: their shapes,
// and the model's buffers (model.json and run.safetensors, which rank 0 attaches).
//
// Threads: any; pure but for reading attachments.

#ifndef SLUICE_TOOLS_SAVED_SHAPES_H_
#define SLUICE_TOOLS_SAVED_SHAPES_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "offload/checkpoint/reader.h"

namespace sluice::tools {

struct SavedShape {
  std::vector<int64_t> shape;
  std::string dtype;  // safetensors' name for it; empty: not known
};

struct SavedBuffer {
  std::string name;
  SavedShape shape;
  std::string bytes;
};

struct SavedShapes {
  bool there = false;  // model.json was attached
  std::map<std::string, SavedShape, std::less<>> tensors;
  std::vector<SavedBuffer> buffers;
  std::vector<std::string> left_out;  // buffers of types that safetensors files can't have
};

// Errors: InvalidArgument naming the file, and what of it can't be; those of reading.
absl::StatusOr<SavedShapes> ReadSavedShapes(CheckpointReader* reader);

// Of model.json's text, and of run.safetensors. source: for messages.
absl::StatusOr<SavedShapes> ParseSavedShapes(const std::string& model, const std::string& run,
                                             const std::string& source);

// Bytes of an element of safetensors' type; 0 of one that isn't known.
int64_t SizeOfSafetensors(std::string_view dtype);
// Elements; -1 if they can't be.
int64_t ElementsOf(const std::vector<int64_t>& shape);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_SAVED_SHAPES_H_
