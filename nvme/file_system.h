// nvme/file_system.h
//
// What swap files must know of the file system they lie on: whether it is RAM, and whether bytes
// that are written again go to the space that was reserved for them, or elsewhere.
//
// Threads: any. Blocks on system calls.

#ifndef SLUICE_NVME_FILE_SYSTEM_H_
#define SLUICE_NVME_FILE_SYSTEM_H_

#include <string>

#include "core/types.h"

namespace sluice {

enum class FileSystemKind {
  kInPlace,      // what is reserved is there when it is written, again and again
  kRam,          // its files take memory of the machine and of the cgroup
  kCopyOnWrite,  // writing again takes new space, unless that is turned off for a file
  kLayered,      // it stores nothing itself, and doesn't say what does
};

struct FileSystem {
  std::string name;  // "ext4"
  FileSystemKind kind = FileSystemKind::kInPlace;
};

// Of the file system on which `path` lies; one that isn't known is taken to write in place.
FileSystem FileSystemOf(const std::string& path);

// Turns copy on write off for the empty file `fd` (FS_NOCOW_FL). Returns whether the file system
// says that it is off.
enum class CopyOnWrite { kOff, kOn };
CopyOnWrite TurnOffCopyOnWrite(int fd);

// What tells two file systems apart whose directories share space: equal for all directories of
// one.
std::string StorageOf(const std::string& path);

}  // namespace sluice

#endif  // SLUICE_NVME_FILE_SYSTEM_H_
