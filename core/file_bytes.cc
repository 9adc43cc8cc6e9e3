#include "core/file_bytes.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// Signals of this thread wait as long as this lives.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_{};
};

absl::Status WriteAll(int file, std::string_view text, mode_t mode) {
  while (!text.empty()) {
    const ssize_t n = write(file, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "writing it");
    text.remove_prefix(static_cast<size_t>(n));
  }
  if (fchmod(file, mode) != 0) return ErrnoStatus(errno, "setting its mode");
  return fsync(file) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "writing it");
}

}  // namespace

absl::StatusOr<std::string> ReadBytes(const std::string& path, size_t offset, size_t most) {
  // A FIFO's open would wait for a writer.
  const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, fmt::format("reading {}", path));
  struct stat info {};
  std::string text;
  absl::Status status;
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(fmt::format("{} is not a regular file", path));
  }
  while (status.ok() && text.size() < most) {
    char buffer[1 << 16];
    const ssize_t n = pread(file, buffer, std::min(sizeof(buffer), most - text.size()),
                            static_cast<off_t>(offset + text.size()));
    if (n == 0) break;
    if (n < 0) {
      status = ErrnoStatus(errno, fmt::format("reading {}", path));
    } else {
      text.append(buffer, static_cast<size_t>(n));
    }
  }
  close(file);
  if (!status.ok()) return status;
  return text;
}

absl::Status ReplaceFile(const std::string& named, std::string_view text) {
  // What a link leads to is replaced, not the link.
  char* const real = realpath(named.c_str(), nullptr);
  const std::string path = real != nullptr ? real : named;
  free(real);
  struct stat info {};
  const bool is_there = stat(path.c_str(), &info) == 0;
  if (is_there && !S_ISREG(info.st_mode))
    return absl::InvalidArgumentError(fmt::format("{} is not a regular file", named));
  const NoSignals until_it_has_its_name;
  std::string other = path + ".XXXXXX";
  const int file = mkostemp(other.data(), O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, fmt::format("making {}", named));
  absl::Status status = WriteAll(file, text, is_there ? info.st_mode & 0777 : 0644);
  close(file);
  if (status.ok() && rename(other.c_str(), path.c_str()) != 0)
    status = ErrnoStatus(errno, "giving it its name");
  if (!status.ok()) unlink(other.c_str());
  return Annotate(status, named);
}

}  // namespace sluice
