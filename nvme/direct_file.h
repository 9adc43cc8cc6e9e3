// nvme/direct_file.h
//
// A file opened for swapping: unnamed (it vanishes with the process, also after kill -9), space
// reserved, and direct I/O where it works, which is tried. Nothing here creates a name, and nothing
// that exists is ever opened or deleted.
//
// Threads: one at a time. Blocks on system calls; used at start and at the end only.

#ifndef SLUICE_NVME_DIRECT_FILE_H_
#define SLUICE_NVME_DIRECT_FILE_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

// The largest alignment of direct I/O that is looked for.
inline constexpr Bytes kAlignmentMax = KiB(64);

class DirectFile {
 public:
  // An unnamed file in `directory` with `size` bytes reserved (fallocate), mode 0600. O_TMPFILE
  // where the file system has it, else created under a random name with O_EXCL and unlinked at
  // once. Copy on write is turned off where the file system lets us. Errors: NotFound,
  // PermissionDenied (the directory), ResourceExhausted (size, free space, and the directory),
  // FailedPrecondition (not a directory).
  static absl::StatusOr<DirectFile> CreateUnnamed(const std::string& directory, Bytes size);

  DirectFile(DirectFile&& other) noexcept { *this = std::move(other); }
  DirectFile& operator=(DirectFile&& other) noexcept;
  ~DirectFile();

  int fd() const { return fd_; }
  bool direct() const { return direct_; }  // false: plain I/O through the page cache
  // Of memory, offset and length; 1 where any will do. A power of two, at most kAlignmentMax.
  Bytes alignment() const { return alignment_; }
  bool in_ram() const { return in_ram_; }  // as on tmpfs
  // Writing again takes new space, so that what is reserved may not do.
  bool may_run_out() const { return may_run_out_; }
  Bytes size() const { return size_; }
  Bytes allocated() const;  // what the file system says it takes: st_blocks * 512
  const std::string& directory() const { return directory_; }
  // For `sluice doctor`: "/mnt/a: ext4, direct I/O, alignment 512, unnamed".
  std::string description() const;

 private:
  DirectFile() = default;
  absl::Status MakeDirect();

  int fd_ = -1;
  bool direct_ = false;
  bool unlinked_ = false;
  bool in_ram_ = false;
  bool may_run_out_ = false;
  Bytes alignment_{1};
  Bytes size_;
  std::string directory_;
  std::string notes_;  // the file system, and what is special about it
};

// How large this process may make a file (ulimit -f); the largest value where there is no limit.
Bytes FileBytesMax();

// What this process may still put in `directory`; the largest value where the file system sets no
// limit. Errors: those of the system calls, naming the directory.
absl::StatusOr<Bytes> FreeSpace(const std::string& directory);

}  // namespace sluice

#endif  // SLUICE_NVME_DIRECT_FILE_H_
