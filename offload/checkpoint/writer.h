// offload/checkpoint/writer.h
//
// Saves a checkpoint so that it is whole or not there, whatever happens meanwhile. All ranks write
// their parts into "<directory>/.<tag>.<id in hex>.saving", each durable before Finish returns;
// then one of them commits: checkpoint.json, durable, and the directory gets its name. Until then
// nothing that is named is touched, and from then on the checkpoint survives a loss of power.
//
// One that has the tag already is replaced in one step (Files::Exchange; where the file system
// can't, it is moved aside first, and a crash between the two leaves it under its other name,
// where it is found), and removed then.
//
// Threads: one at a time. Blocks on the disk.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_WRITER_H_
#define SLUICE_OFFLOAD_CHECKPOINT_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/manifest.h"

namespace sluice {

struct CheckpointPlace {
  std::string directory;  // made if it isn't there (its parent must be)
  std::string tag;        // a name without '/', not beginning with '.', at most 200 bytes
  uint64_t id = 0;        // of this save
};

// A checkpoint that has frozen values as they are still.
struct FrozenSaved {
  FrozenSaved() = default;
  FrozenSaved(std::string path, uint64_t frozen_id = 0)  // NOLINT: a path is one
      : path(std::move(path)), frozen_id(frozen_id) {}
  FrozenSaved(const char* path) : path(path) {}  // NOLINT: likewise
  std::string path;                              // empty: none
  uint64_t frozen_id = 0;  // of the save that wrote them (SavedPart); 0: whichever did
};

class CheckpointWriter {
 public:
  // `part`: without checksums and attachments. `frozen_from`: a checkpoint whose file of frozen
  // values this rank wrote with the same pieces, and that are still what they were: it is linked
  // instead of written again, and the pieces of frozen tensors are not to be given. Empty: none.
  // Errors: InvalidArgument for a tag, a tensor's name (empty, with '/' at its ends, twice) or
  // pieces that overlap or lie outside; those of the files, a full disk before anything is written.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Begin(Files* files,
                                                                 const CheckpointPlace& place,
                                                                 SavedPart part,
                                                                 const FrozenSaved& frozen_from);
  ~CheckpointWriter();

  bool frozen_linked() const;  // it could be
  // The piece's bytes; each piece once, in any order.
  absl::Status Write(size_t piece, ConstMemoryView bytes);
  absl::Status Attach(const std::string& name, ConstMemoryView bytes);
  // All pieces were written: everything of this rank is durable when it returns.
  absl::Status Finish();

 private:
  struct State;
  explicit CheckpointWriter(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

// By one rank, after all have finished: the checkpoint is there. `latest`: the file of that name
// says so then. Errors: DataLoss if a part is missing or isn't of this save; those of the files:
// nothing has changed then, unless the words say that it is there and only `latest` isn't.
absl::Status CommitCheckpoint(Files* files, const CheckpointPlace& place, bool latest);

// What is left of a save that failed, of this id only. By one rank, when all have ended.
absl::Status AbandonCheckpoint(Files* files, const CheckpointPlace& place);

// Removes whole checkpoints of Sluice's, oldest first, but the last `keep` and those of whose
// number of steps `every` is a divisor (0: none); and what saves that died have left: not to be
// called while one is under way there. Whatever else lies there, and what is inside a checkpoint
// and not of it, stays. Returns the tags removed. Errors: FailedPrecondition, after all that could
// be done, naming directories that stay because of what somebody else has put into them; those of
// the files.
absl::StatusOr<std::vector<std::string>> PruneCheckpoints(Files* files,
                                                          const std::string& directory,
                                                          uint32_t keep, uint64_t every);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_WRITER_H_
