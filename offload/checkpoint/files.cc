#include "offload/checkpoint/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// What may be dirty in the page cache for each file: twice this.
constexpr uint64_t kWindowBytes = uint64_t{8} << 20;
constexpr size_t kRangesMax = 1024;  // of it, where what is written is scattered

absl::Status FileStatus(int error, std::string_view what, const std::string& path) {
  const absl::Status said = ErrnoStatus(error, fmt::format("{} {}", what, path));
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
      code = absl::StatusCode::kResourceExhausted;
      break;
    case ENOENT:
    case ENOTDIR:
      code = absl::StatusCode::kNotFound;
      break;
    case EEXIST:
      code = absl::StatusCode::kAlreadyExists;
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = absl::StatusCode::kPermissionDenied;
      break;
    default:
      break;
  }
  return {code, said.message()};
}

// A descriptor that is closed when it goes.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// The call again for as long as a signal interrupts it.
template <typename Call>
auto Retried(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

class RealOutputFile final : public OutputFile {
 public:
  RealOutputFile(Descriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::Status Write(uint64_t offset, ConstMemoryView bytes) override {
    SLUICE_RETURN_IF_ERROR(failed_);
    const uint64_t size = bytes.size(), begin = offset;
    while (!bytes.empty()) {
      const ssize_t n = Retried([&] {
        return pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      });
      if (n <= 0) return failed_ = FileStatus(n < 0 ? errno : ENOSPC, "writing", path_);
      offset += static_cast<uint64_t>(n);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    if (!now_.empty() && now_.back().begin + now_.back().size == begin) {
      now_.back().size += size;
    } else {
      now_.push_back({begin, size});
    }
    now_bytes_ += size;
    const bool full = now_bytes_ >= kWindowBytes || now_.size() >= kRangesMax;
    return full ? SendWindow() : absl::OkStatus();
  }

  absl::Status Sync() override {
    SLUICE_RETURN_IF_ERROR(failed_);
    // Its size may be new, which fdatasync stores too, as far as it is needed to read the bytes.
    if (Retried([&] { return fdatasync(fd_.get()); }) != 0)
      return failed_ = FileStatus(errno, "syncing", path_);
    posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    return absl::OkStatus();
  }

 private:
  struct Range {
    uint64_t begin;
    uint64_t size;
  };

  // Sends what was written since the last time on its way to the drive, waits for what was sent
  // then, and drops that from the page cache. Otherwise a save fills the memory that the process
  // may have with dirty pages, until the kernel stops whoever needs memory to write them: training.
  // An error that is seen here is not seen again by fdatasync, so the file has failed.
  absl::Status SendWindow() {
    const auto send = [this](const Range& range, unsigned flags) {
      const int result = Retried([&] {
        return sync_file_range(fd_.get(), static_cast<off_t>(range.begin),
                               static_cast<off_t>(range.size), flags);
      });
      if (result == 0 || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL)
        return absl::OkStatus();
      return failed_ = FileStatus(errno, "writing", path_);
    };
    for (const Range& range : now_) SLUICE_RETURN_IF_ERROR(send(range, SYNC_FILE_RANGE_WRITE));
    for (const Range& range : before_) {
      SLUICE_RETURN_IF_ERROR(send(
          range, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
      posix_fadvise(fd_.get(), static_cast<off_t>(range.begin), static_cast<off_t>(range.size),
                    POSIX_FADV_DONTNEED);
    }
    before_ = std::move(now_);
    now_.clear();
    now_bytes_ = 0;
    return absl::OkStatus();
  }

  const Descriptor fd_;
  const std::string path_;
  absl::Status failed_;  // the first error: what it lost is lost
  std::vector<Range> now_, before_;
  uint64_t now_bytes_ = 0;
};

class RealInputFile final : public InputFile {
 public:
  RealInputFile(Descriptor fd, std::string path, uint64_t size)
      : fd_(std::move(fd)), path_(std::move(path)), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::Status Read(uint64_t offset, MemoryView to) const override {
    while (!to.empty()) {
      const ssize_t n = Retried(
          [&] { return pread(fd_.get(), to.data(), to.size(), static_cast<off_t>(offset)); });
      if (n < 0) return FileStatus(errno, "reading", path_);
      if (n == 0)
        return absl::DataLossError(
            fmt::format("{} ends at byte {}, {} bytes early", path_, offset, to.size()));
      offset += static_cast<uint64_t>(n);
      to = to.subspan(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

 private:
  const Descriptor fd_;
  const std::string path_;
  const uint64_t size_;
};

class Real final : public Files {
 public:
  absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path,
                                                     uint64_t size) override {
    Descriptor fd(Retried([&] {
      return open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    }));
    if (fd.get() < 0) return FileStatus(errno, "creating", path);
    if (size > 0 &&
        Retried([&] { return fallocate(fd.get(), 0, 0, static_cast<off_t>(size)); }) != 0) {
      const int error = errno;
      // Anything else but a lack of space: there is no reserving here, and writing will tell.
      if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
        unlink(path.c_str());
        return FileStatus(error, fmt::format("reserving {} bytes for", size), path);
      }
    }
    return std::make_unique<RealOutputFile>(std::move(fd), path);
  }

  absl::StatusOr<std::unique_ptr<InputFile>> Open(const std::string& path) override {
    // A FIFO's open would wait for a writer.
    Descriptor fd(Retried([&] { return open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); }));
    if (fd.get() < 0) return FileStatus(errno, "opening", path);
    struct stat info {};
    if (fstat(fd.get(), &info) != 0) return FileStatus(errno, "opening", path);
    if (!S_ISREG(info.st_mode))
      return absl::UnavailableError(fmt::format("{} is not a regular file", path));
    return std::make_unique<RealInputFile>(std::move(fd), path,
                                           static_cast<uint64_t>(info.st_size));
  }

  absl::Status MakeDirectory(const std::string& path) override {
    if (mkdir(path.c_str(), 0755) == 0) return absl::OkStatus();
    return FileStatus(errno, "making the directory", path);
  }

  absl::Status SyncDirectory(const std::string& path) override {
    const Descriptor fd(
        Retried([&] { return open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (fd.get() < 0) return FileStatus(errno, "syncing the directory", path);
    if (Retried([&] { return fsync(fd.get()); }) == 0) return absl::OkStatus();
    // There are file systems whose directories can't be synced, and need not be.
    if (errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS) return absl::OkStatus();
    return FileStatus(errno, "syncing the directory", path);
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    return FileStatus(errno, fmt::format("renaming {} to", from), to);
  }

  absl::Status Exchange(const std::string& a, const std::string& b) override {
    if (renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0)
      return absl::OkStatus();
    const absl::Status status = FileStatus(errno, fmt::format("exchanging {} and", a), b);
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
      return absl::UnimplementedError(status.message());
    return status;
  }

  absl::Status Link(const std::string& from, const std::string& to) override {
    if (link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    return FileStatus(errno, fmt::format("linking {} to", from), to);
  }

  absl::Status Remove(const std::string& path) override {
    if (remove(path.c_str()) == 0) return absl::OkStatus();
    return FileStatus(errno, "removing", path);
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path.c_str()), &closedir);
    if (directory == nullptr) return FileStatus(errno, "listing", path);
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* const entry = readdir(directory.get());  // NOLINT: nobody else has this one
      if (entry == nullptr) break;
      const std::string_view name(entry->d_name);
      if (name != "." && name != "..") names.emplace_back(name);
    }
    if (errno != 0) return FileStatus(errno, "listing", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  bool IsDirectory(const std::string& path) override {
    struct stat info {};
    return lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  }
};

}  // namespace

Files* RealFiles() {
  static Real* const files = new Real;
  return files;
}

}  // namespace sluice
