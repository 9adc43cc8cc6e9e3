// core/file_bytes.h
//
// The bytes of a file that somebody names: only a regular one is read, and only so much.
//
// Threads: any. Blocks on system calls.

#ifndef SLUICE_CORE_FILE_BYTES_H_
#define SLUICE_CORE_FILE_BYTES_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice {

// From place `offset` of a regular file on, `most` bytes, or as many as there are. Errors:
// InvalidArgument naming a file that isn't regular; those of the system calls, naming it too.
absl::StatusOr<std::string> ReadBytes(const std::string& path, size_t offset, size_t most);

// Makes `named`, or what it links to, a file that holds `text`, of the mode that it has, or 0644:
// at every moment it is the old one, if there was one, or the new one, whole; and nothing else
// stays, also after Ctrl-C. Errors: those of the system calls, naming the path.
absl::Status ReplaceFile(const std::string& named, std::string_view text);

}  // namespace sluice

#endif  // SLUICE_CORE_FILE_BYTES_H_
