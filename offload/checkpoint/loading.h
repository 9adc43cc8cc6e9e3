// offload/checkpoint/loading.h
//
// A checkpoint's manifests, read and held against each other and against the files; and which
// checkpoints there are.
//
// Threads: any. Blocks on the disk.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_LOADING_H_
#define SLUICE_OFFLOAD_CHECKPOINT_LOADING_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/manifest_text.h"
#include "offload/checkpoint/reader.h"

namespace sluice {

// checkpoint.json in the directory `path`. Errors: NotFound if there is none; DataLoss.
absl::StatusOr<IndexText> LoadIndex(Files* files, const std::string& path);
// Errors: DataLoss naming the file that is missing or has another size.
absl::Status CheckSizes(Files* files, const std::string& path, const IndexText& index);
// The rank's part, which is what the index says.
absl::StatusOr<PartText> LoadPart(Files* files, const std::string& path, const IndexText& index,
                                  uint32_t rank);
// Of a part whose tensors are those of rank 0. source: of the part, for messages.
absl::StatusOr<PartLayout> LayOutLoaded(std::span<const SavedTensor> tensors, const PartText& part,
                                        const std::string& source);

// A piece among those of all ranks.
struct PieceKey {
  uint32_t tensor = 0;
  uint32_t field = 0;
  int64_t first = 0;
  int64_t elements = 0;
  uint32_t rank = 0;
  uint32_t piece = 0;
};
void AppendKeys(std::vector<PieceKey>* keys, const SavedPart& part);
// Sorts them. Errors: DataLoss if two ranks have saved an element.
absl::Status SortKeys(std::vector<PieceKey>* keys, std::span<const SavedTensor> tensors,
                      const std::string& source);

struct FoundCheckpoint {
  CheckpointSummary summary;  // its status says so if its sizes are wrong
  std::string path;
  uint64_t sequence = 0;
};
// Those in `directory`, newest first.
absl::StatusOr<std::vector<FoundCheckpoint>> FindCheckpoints(Files* files,
                                                             const std::string& directory);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_LOADING_H_
