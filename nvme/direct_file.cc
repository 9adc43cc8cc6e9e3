#include "nvme/direct_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/file_system.h"

namespace sluice {

namespace {

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

// The alignment that the file system says direct I/O on `fd` asks for; 0 if it says that there is
// no direct I/O; nothing if it doesn't say.
std::optional<Bytes> SaidAlignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx info {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) != 0) return std::nullopt;
  if ((info.stx_mask & STATX_DIOALIGN) == 0) return std::nullopt;
  if (info.stx_dio_offset_align == 0) return Bytes(0);
  return Bytes(std::max(info.stx_dio_mem_align, info.stx_dio_offset_align));
#else
  (void)fd;
  return std::nullopt;
#endif
}

// Whether `size` bytes can be written and read at multiples of `size` that are multiples of nothing
// larger where there is room. Errors: what has nothing to do with alignment.
absl::StatusOr<bool> Works(int fd, Bytes file_size, Bytes size) {
  const size_t n = size.size();
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(2 * n, 2 * n)), &std::free);
  if (memory == nullptr) return absl::ResourceExhaustedError("out of memory");
  std::memset(memory.get(), 0, 2 * n);
  std::byte* const at = memory.get() + n;
  const off_t offset = 2 * size <= file_size ? size.value() : 0;
  ssize_t moved = pwrite(fd, at, n, offset);
  if (moved == static_cast<ssize_t>(n)) moved = pread(fd, at, n, offset);
  if (moved >= 0 || errno == EINVAL || errno == EOPNOTSUPP) return moved == static_cast<ssize_t>(n);
  return ErrnoStatus(errno, fmt::format("trying direct I/O of {} bytes", n));
}

// Likewise, found by trying: first what is said, then what drives have. 0 if nothing works.
absl::StatusOr<Bytes> FindAlignment(int fd, Bytes file_size) {
  const std::optional<Bytes> answer = SaidAlignment(fd);
  if (answer == Bytes(0)) return Bytes(0);
  const Bytes said = answer.value_or(Bytes(0));
  if (said > file_size) return said;
  for (Bytes size = std::max(said, Bytes(512)); size <= std::min(file_size, kAlignmentMax);
       size = size * 2) {
    SLUICE_ASSIGN_OR_RETURN(const bool works, Works(fd, file_size, size));
    if (works) return size;
  }
  return Bytes(0);
}

absl::Status Reserve(int fd, const std::string& directory, Bytes size) {
  if (size == Bytes(0)) return absl::OkStatus();
  // Asked first: reserving more than the limit raises SIGXFSZ, which ends the process.
  if (size > FileBytesMax()) {
    return absl::ResourceExhaustedError(fmt::format(
        "a swap file of {} in {} is over this process's limit on files, {}: raise it (ulimit -f)",
        FormatBytes(size), directory, FormatBytes(FileBytesMax())));
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
  if (error == EFBIG) {
    return ErrnoStatus(
        error, fmt::format("making a file of {} in {}, whose file system has smaller ones only: "
                           "limit their size (ulimit -f), and there will be more",
                           FormatBytes(size), directory));
  }
  return ErrnoStatus(error, fmt::format("reserving {} in {}, which has {} free", FormatBytes(size),
                                        directory, FormatBytes(free)));
}

}  // namespace

absl::StatusOr<DirectFile> DirectFile::CreateUnnamed(const std::string& directory, Bytes size) {
  DirectFile file;
  file.directory_ = directory;
  file.size_ = size;
  SLUICE_ASSIGN_OR_RETURN(file.fd_, OpenUnnamed(directory, &file.unlinked_));
  const FileSystem system = FileSystemOf(directory);
  file.notes_ = system.name;
  file.in_ram_ = system.kind == FileSystemKind::kRam;
  if (file.in_ram_) file.notes_ += " (in RAM)";
  // Before there is anything in it: afterwards it can't be changed.
  if (system.kind == FileSystemKind::kCopyOnWrite || system.kind == FileSystemKind::kLayered) {
    if (TurnOffCopyOnWrite(file.fd_) == CopyOnWrite::kOff) {
      file.notes_ += " without copy on write";
    } else if (system.kind == FileSystemKind::kCopyOnWrite) {
      file.may_run_out_ = true;
      file.notes_ += " (copy on write: space may run out)";
    }
  }
  SLUICE_RETURN_IF_ERROR(Reserve(file.fd_, directory, size));
  // Last: where the file system can't reserve, the C library writes single bytes instead.
  SLUICE_RETURN_IF_ERROR(Annotate(file.MakeDirect(), directory));
  return file;
}

absl::Status DirectFile::MakeDirect() {
  const int flags = fcntl(fd_, F_GETFL);
  if (in_ram_ || size_ == Bytes(0) || flags < 0 || fcntl(fd_, F_SETFL, flags | O_DIRECT) != 0)
    return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const Bytes alignment, FindAlignment(fd_, size_));
  if (alignment > Bytes(0)) {
    direct_ = true;
    alignment_ = alignment;
    return absl::OkStatus();
  }
  notes_ += fmt::format(", no direct I/O at alignments up to {}",
                        FormatBytes(std::min(size_, kAlignmentMax)));
  if (fcntl(fd_, F_SETFL, flags) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "turning direct I/O off");
}

DirectFile& DirectFile::operator=(DirectFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(unlinked_, other.unlinked_);
  std::swap(in_ram_, other.in_ram_);
  std::swap(may_run_out_, other.may_run_out_);
  std::swap(alignment_, other.alignment_);
  std::swap(size_, other.size_);
  std::swap(directory_, other.directory_);
  std::swap(notes_, other.notes_);
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
  return fmt::format("{}: {}, {}, {}", directory_, notes_, how, unlinked_ ? "unlinked" : "unnamed");
}

Bytes FileBytesMax() {
  rlimit limit{};
  const bool limited =
      getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur <= static_cast<rlim_t>(INT64_MAX);
  return Bytes(limited ? static_cast<int64_t>(limit.rlim_cur) : INT64_MAX);
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
