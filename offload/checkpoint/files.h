// offload/checkpoint/files.h
//
// What a checkpoint asks of a file system, and no more: so that tests can stand in for it, lose
// power at any moment, and look at what is left.
//
// Nothing is durable before it was synced: the bytes of a file by OutputFile::Sync, the names in a
// directory by SyncDirectory. A failed sync is never tried again: what it lost is lost.
//
// Threads: any; one file is used by one thread at a time. Blocks on system calls. Errors name the
// path and what was tried; a full disk is ResourceExhausted, a missing path NotFound, a path that
// is there already AlreadyExists, what may not be done PermissionDenied, anything else Unavailable.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_FILES_H_
#define SLUICE_OFFLOAD_CHECKPOINT_FILES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

class OutputFile {
 public:
  virtual ~OutputFile() = default;  // closes; what was not synced may be lost
  virtual absl::Status Write(uint64_t offset, ConstMemoryView bytes) = 0;
  virtual absl::Status Sync() = 0;  // its bytes and its size
};

class InputFile {
 public:
  virtual ~InputFile() = default;
  virtual uint64_t size() const = 0;
  // Fills `to`. Errors: DataLoss if the file ends before.
  virtual absl::Status Read(uint64_t offset, MemoryView to) const = 0;
};

class Files {
 public:
  virtual ~Files() = default;

  // A new file of `size` bytes, for which space is reserved where the file system can.
  virtual absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path,
                                                             uint64_t size) = 0;
  virtual absl::StatusOr<std::unique_ptr<InputFile>> Open(const std::string& path) = 0;
  virtual absl::Status MakeDirectory(const std::string& path) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // Replaces a file at `to`. A directory at `to` must be empty, or the call fails.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // Both change places at once. Unimplemented where the file system can't.
  virtual absl::Status Exchange(const std::string& a, const std::string& b) = 0;
  virtual absl::Status Link(const std::string& from, const std::string& to) = 0;  // a file
  virtual absl::Status Remove(const std::string& path) = 0;  // a file, or an empty directory
  // Names in a directory, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) = 0;
  // Itself, not by a link.
  virtual bool IsDirectory(const std::string& path) = 0;
};

// The real ones; lives as long as the process.
Files* RealFiles();

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_FILES_H_
