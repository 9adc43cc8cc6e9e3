#include "tests/nvme/fake_drive.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>

namespace sluice {

FakeDrive& FakeDrive::Get() {
  static FakeDrive drive;
  return drive;
}

namespace {

// Whether the drive would take this, if it is direct.
bool Takes(int fd, const void* at, size_t size, off_t offset) {
  const int64_t alignment = FakeDrive::Get().alignment;
  if (alignment == 1 || (fcntl(fd, F_GETFL) & O_DIRECT) == 0) return true;
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at));
  const bool aligned = address % alignment == 0 && static_cast<int64_t>(size) % alignment == 0 &&
                       offset % alignment == 0;
  if (!aligned) errno = EINVAL;
  return aligned;
}

int SetFlags(int fd, unsigned long request, int* flags) {
  FakeDrive& drive = FakeDrive::Get();
  if (drive.no_cow == FakeDrive::NoCow::kUnknownCall) return errno = ENOTTY, -1;
  if (request == FS_IOC_GETFLAGS) return *flags = drive.flags, 0;
  if (drive.no_cow == FakeDrive::NoCow::kRefused) return errno = EOPNOTSUPP, -1;
  struct stat info {};
  drive.empty = fstat(fd, &info) == 0 && info.st_blocks == 0;
  ++drive.flags_set;
  if (drive.no_cow == FakeDrive::NoCow::kTaken) drive.flags = *flags;
  return 0;
}

}  // namespace

}  // namespace sluice

// NOLINTBEGIN: ld's names
extern "C" {

ssize_t __real_pread(int fd, void* at, size_t size, off_t offset);
ssize_t __wrap_pread(int fd, void* at, size_t size, off_t offset) {
  return sluice::Takes(fd, at, size, offset) ? __real_pread(fd, at, size, offset) : -1;
}

ssize_t __real_pwrite(int fd, const void* at, size_t size, off_t offset);
ssize_t __wrap_pwrite(int fd, const void* at, size_t size, off_t offset) {
  return sluice::Takes(fd, at, size, offset) ? __real_pwrite(fd, at, size, offset) : -1;
}

int __real_statfs(const char* path, struct statfs* fs);
int __wrap_statfs(const char* path, struct statfs* fs) {
  const int result = __real_statfs(path, fs);
  if (const auto magic = sluice::FakeDrive::Get().magic; magic) fs->f_type = *magic;
  return result;
}

int __real_statx(int fd, const char* path, int flags, unsigned mask, struct statx* info);
int __wrap_statx(int fd, const char* path, int flags, unsigned mask, struct statx* info) {
  const int result = __real_statx(fd, path, flags, mask, info);
#ifdef STATX_DIOALIGN
  if (const auto said = sluice::FakeDrive::Get().said_alignment; said) {
    info->stx_mask = *said > 0 ? info->stx_mask | STATX_DIOALIGN : info->stx_mask & ~STATX_DIOALIGN;
    info->stx_dio_mem_align = info->stx_dio_offset_align = *said;
  }
#endif
  return result;
}

int __real_ioctl(int fd, unsigned long request, void* argument);
int __wrap_ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* const argument = va_arg(list, void*);
  va_end(list);
  const bool of_flags = request == FS_IOC_GETFLAGS || request == FS_IOC_SETFLAGS;
  if (of_flags && sluice::FakeDrive::Get().no_cow)
    return sluice::SetFlags(fd, request, static_cast<int*>(argument));
  return __real_ioctl(fd, request, argument);
}

}  // extern "C"
// NOLINTEND
