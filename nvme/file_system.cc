#include "nvme/file_system.h"

#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdint>
#include <span>

#include "fmt/format.h"

namespace sluice {

namespace {

struct Known {
  uint32_t magic;
  const char* name;
  FileSystemKind kind;
};
constexpr Known kKnown[] = {
    {EXT4_SUPER_MAGIC, "ext4", FileSystemKind::kInPlace},
    {XFS_SUPER_MAGIC, "xfs", FileSystemKind::kInPlace},  // of unnamed files no extent is shared
    {F2FS_SUPER_MAGIC, "f2fs", FileSystemKind::kInPlace},
    {NFS_SUPER_MAGIC, "nfs", FileSystemKind::kInPlace},
    {0xFF534D42, "cifs", FileSystemKind::kInPlace},
    {0xFE534D42, "smb3", FileSystemKind::kInPlace},
    {0x00C36400, "ceph", FileSystemKind::kInPlace},
    {V9FS_MAGIC, "9p", FileSystemKind::kInPlace},
    {0x0BD00BD0, "lustre", FileSystemKind::kInPlace},
    {FUSE_SUPER_MAGIC, "fuse", FileSystemKind::kLayered},
    {TMPFS_MAGIC, "tmpfs", FileSystemKind::kRam},
    {RAMFS_MAGIC, "ramfs", FileSystemKind::kRam},
    {HUGETLBFS_MAGIC, "hugetlbfs", FileSystemKind::kRam},
    {BTRFS_SUPER_MAGIC, "btrfs", FileSystemKind::kCopyOnWrite},
    {0xCA451A4E, "bcachefs", FileSystemKind::kCopyOnWrite},
    {0x2FC12FC1, "zfs", FileSystemKind::kCopyOnWrite},
    {NILFS_SUPER_MAGIC, "nilfs2", FileSystemKind::kCopyOnWrite},
    {OVERLAYFS_SUPER_MAGIC, "overlay", FileSystemKind::kLayered},
    {ECRYPTFS_SUPER_MAGIC, "ecryptfs", FileSystemKind::kLayered},
};

}  // namespace

FileSystem FileSystemOf(const std::string& path) {
  struct statfs fs {};
  if (statfs(path.c_str(), &fs) != 0) return {.name = "unknown file system"};
  const auto magic = static_cast<uint32_t>(fs.f_type);
  for (const Known& known : kKnown)
    if (known.magic == magic) return {.name = known.name, .kind = known.kind};
  return {.name = fmt::format("file system {:#x}", magic)};
}

CopyOnWrite TurnOffCopyOnWrite(int fd) {
  int flags = 0;
  if (ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return CopyOnWrite::kOn;
  flags |= FS_NOCOW_FL;
  if (ioctl(fd, FS_IOC_SETFLAGS, &flags) != 0) return CopyOnWrite::kOn;
  flags = 0;
  const bool off = ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_NOCOW_FL) != 0;
  return off ? CopyOnWrite::kOff : CopyOnWrite::kOn;
}

std::string StorageOf(const std::string& path) {
  struct statfs fs {};
  struct stat info {};
  if (statfs(path.c_str(), &fs) != 0 || stat(path.c_str(), &info) != 0) return path;
  // Subvolumes of a btrfs have devices of their own.
  if (static_cast<uint32_t>(fs.f_type) == BTRFS_SUPER_MAGIC) {
    const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    btrfs_ioctl_fs_info_args args{};
    const bool known = fd >= 0 && ioctl(fd, BTRFS_IOC_FS_INFO, &args) == 0;
    if (fd >= 0) close(fd);
    std::string id = "btrfs ";
    for (const unsigned byte : std::span(args.fsid)) id += fmt::format("{:02x}", byte);
    if (known) return id;
  }
  // So have overlays, which say of space what the file system beneath them says.
  if (static_cast<uint32_t>(fs.f_type) == OVERLAYFS_SUPER_MAGIC)
    return fmt::format("overlay {} {}", fs.f_blocks, fs.f_files);
  return fmt::format("device {}", info.st_dev);
}

}  // namespace sluice
