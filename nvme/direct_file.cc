#include "nvme/direct_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

std::string FileSystemName(const std::string& directory) {
  struct statfs fs {};
  if (statfs(directory.c_str(), &fs) != 0) return "unknown file system";
  switch (static_cast<unsigned>(fs.f_type)) {
    case 0xEF53:
      return "ext4";
    case 0x58465342:
      return "xfs";
    case 0x9123683E:
      return "btrfs";
    case 0x01021994:
      return "tmpfs";
    case 0x794C7630:
      return "overlay";
    case 0x6969:
      return "nfs";
    case 0x65735546:
      return "fuse";
    default:
      return fmt::format("file system {:#x}", static_cast<unsigned>(fs.f_type));
  }
}

// A file without a name; `unlinked` says whether it had one for a moment.
absl::StatusOr<int> OpenUnnamed(const std::string& directory, bool* unlinked) {
  int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return fd;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {
    if (errno == ENOTDIR) {
      return absl::FailedPreconditionError(fmt::format(
          "{} is not a directory: give a directory on the drive to swap to", directory));
    }
    return ErrnoStatus(errno, fmt::format("creating a swap file in {}", directory));
  }
  std::string name = directory + "/.sluice-XXXXXX";
  fd = mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, fmt::format("creating a swap file in {}", directory));
  *unlinked = true;
  if (unlink(name.c_str()) != 0) {
    const int error = errno;
    close(fd);
    return ErrnoStatus(error, fmt::format("unlinking the new swap file {}", name));
  }
  return fd;
}

// The alignment that direct I/O on `fd` asks for, or 0 if it has none or doesn't say.
Bytes DirectAlignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx info {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) != 0) return Bytes(0);
  if ((info.stx_mask & STATX_DIOALIGN) == 0 || info.stx_dio_offset_align == 0) return Bytes(0);
  return Bytes(std::max(info.stx_dio_mem_align, info.stx_dio_offset_align));
#else
  (void)fd;
  return Bytes(0);
#endif
}

absl::Status Reserve(int fd, const std::string& directory, Bytes size) {
  if (size == Bytes(0)) return absl::OkStatus();
  // Asked first: reserving more than the limit raises SIGXFSZ, which ends the process.
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && size.size() > limit.rlim_cur) {
    return absl::ResourceExhaustedError(fmt::format(
        "a swap file of {} in {} is over this process's limit on files, {}: raise it (ulimit -f)",
        FormatBytes(size), directory, FormatBytes(Bytes(static_cast<int64_t>(limit.rlim_cur)))));
  }
  // Likewise: the kernel would fill the drive before it says that it has too little.
  SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(directory));
  int error = ENOSPC;
  if (size <= free) {
    do {
      error = posix_fallocate(fd, 0, size.value());
    } while (error == EINTR);
  }
  if (error == 0) return absl::OkStatus();
  return ErrnoStatus(error, fmt::format("reserving {} in {}, which has {} free", FormatBytes(size),
                                        directory, FormatBytes(free)));
}

}  // namespace

absl::StatusOr<DirectFile> DirectFile::CreateUnnamed(const std::string& directory, Bytes size) {
  DirectFile file;
  file.directory_ = directory;
  file.size_ = size;
  SLUICE_ASSIGN_OR_RETURN(file.fd_, OpenUnnamed(directory, &file.unlinked_));
  file.file_system_ = FileSystemName(directory);
  SLUICE_RETURN_IF_ERROR(Reserve(file.fd_, directory, size));
  // Last: where the file system can't reserve, the C library writes single bytes instead.
  const Bytes alignment = DirectAlignment(file.fd_);
  const int flags = fcntl(file.fd_, F_GETFL);
  if (alignment > Bytes(0) && flags >= 0 && fcntl(file.fd_, F_SETFL, flags | O_DIRECT) == 0) {
    file.direct_ = true;
    file.alignment_ = alignment;
  }
  return file;
}

DirectFile& DirectFile::operator=(DirectFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(unlinked_, other.unlinked_);
  std::swap(alignment_, other.alignment_);
  std::swap(size_, other.size_);
  std::swap(directory_, other.directory_);
  std::swap(file_system_, other.file_system_);
  return *this;
}

DirectFile::~DirectFile() {
  if (fd_ >= 0) close(fd_);
}

Bytes DirectFile::allocated() const {
  struct stat info {};
  return fstat(fd_, &info) == 0 ? Bytes(info.st_blocks * 512) : Bytes(0);
}

std::string DirectFile::description() const {
  const std::string how = direct_ ? fmt::format("direct I/O, alignment {}", alignment_.value())
                                  : "plain I/O through the page cache";
  return fmt::format("{}: {}, {}, {}", directory_, file_system_, how,
                     unlinked_ ? "unlinked" : "unnamed");
}

absl::StatusOr<Bytes> FreeSpace(const std::string& directory) {
  struct statvfs fs {};
  if (statvfs(directory.c_str(), &fs) != 0) {
    return ErrnoStatus(errno, fmt::format("looking at {}", directory));
  }
  if (fs.f_blocks == 0) return Bytes(INT64_MAX);  // as a tmpfs without a size says
  return Bytes(static_cast<int64_t>(fs.f_bavail * fs.f_frsize));
}

}  // namespace sluice
