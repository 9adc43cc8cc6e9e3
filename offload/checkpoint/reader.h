// offload/checkpoint/reader.h
//
// Reads a checkpoint: what there is, and its values, each verified before it is used. Takes memory
// for the manifests and for a few pieces, whatever the model's size.
//
// Threads: one at a time. Blocks on the disk.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_READER_H_
#define SLUICE_OFFLOAD_CHECKPOINT_READER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/manifest.h"

namespace sluice {

struct CheckpointSummary {
  std::string tag;
  uint64_t id = 0;
  uint32_t ranks = 0;
  uint64_t steps = 0;  // the most that any of its tensors has had
  uint64_t bytes = 0;
  int64_t saved_at = 0;  // seconds since 1970, for people
  absl::Status status;   // why it can't be loaded; the rest may be missing then
};

// All checkpoints in `directory`, those saved last first.
absl::StatusOr<std::vector<CheckpointSummary>> ListCheckpoints(Files* files,
                                                               const std::string& directory);

class CheckpointReader {
 public:
  // `tag`: empty: what `latest` names, or, where that can't be loaded, the newest that can, and
  // `note()` says so. Looks at manifests and sizes of all files. Errors: NotFound if there is none;
  // DataLoss naming the file that is missing, short or not what the manifest says, and which older
  // checkpoint could be loaded.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(Files* files,
                                                                const std::string& directory,
                                                                const std::string& tag);
  ~CheckpointReader();

  const std::string& path() const;  // of the checkpoint: "<directory>/<tag>"
  const std::string& note() const;  // what a person should hear; empty: nothing
  const CheckpointSummary& summary() const;
  std::span<const SavedTensor> tensors() const;
  const std::vector<SavedPart>& parts() const;  // by rank; their tensors are those above

  // Elements [first, first + elements) of the field, as they were saved, into `to`. Pieces that it
  // touches are read and verified whole, the last few used are kept. Errors: DataLoss naming file
  // and piece; NotFound if no rank has saved a part of it.
  absl::Status Read(uint32_t tensor, uint32_t field, int64_t first, int64_t elements,
                    MemoryView to);
  // NotFound if the rank attached nothing of that name.
  absl::StatusOr<std::string> Attachment(uint32_t rank, const std::string& name);
  // Reads everything once. `progress` (may be empty) hears of bytes read so far, and stops it by
  // returning false (Cancelled).
  absl::Status Verify(const std::function<bool(uint64_t)>& progress);

 private:
  struct State;
  explicit CheckpointReader(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_READER_H_
