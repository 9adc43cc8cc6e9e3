// offload/checkpoint/removal.h
//
// How directories of checkpoints go away: only what is Sluice's, and only once it is durable that
// nothing names them.
//
// Threads: any. Blocks on the disk.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_REMOVAL_H_
#define SLUICE_OFFLOAD_CHECKPOINT_REMOVAL_H_

#include <string>

#include "absl/status/status.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/names.h"

namespace sluice {

// The checkpoint's files in `path`, and the directory if it is empty then. Errors:
// FailedPrecondition naming what is not ours, because of which it stays; those of the files.
absl::Status RemoveOurs(Files* files, const std::string& path);

// A hidden directory, or a next `latest`, that nobody needs any more. What isn't ours in it goes
// back to the name of the tag, if nothing else has that. Errors: as above.
absl::Status RemoveHidden(Files* files, const std::string& directory, const std::string& name);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_REMOVAL_H_
