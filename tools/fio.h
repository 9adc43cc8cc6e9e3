// tools/fio.h
//
// fio, the peer of `sluice bench io`: a job over a file that this process has open, run as a child.
// It is killed if this process ends, writes nothing but to that file, and leaves nothing behind.
//
// Threads: one. Run blocks for as long as the job takes.

#ifndef SLUICE_TOOLS_FIO_H_
#define SLUICE_TOOLS_FIO_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "nvme/direct_file.h"

namespace sluice::tools {

enum class IoMode : uint8_t { kRead, kWrite, kMixed };
inline constexpr IoMode kIoModes[] = {IoMode::kRead, IoMode::kWrite, IoMode::kMixed};
const char* Name(IoMode mode);  // "read", "write", "mixed"

struct FioShape {
  bool io_uring = true;  // else libaio
  Bytes request = MiB(1);
  int depth = 32;
  int batch = 1;       // submissions a call
  bool tuned = false;  // on huge pages, buffers and files registered, what is written not changed
  std::string Text() const;  // "io_uring, 1 MiB x 8, 2 a call, huge pages"
};

// As fio is run by those who don't tune it.
inline constexpr FioShape kPlainFio = {};
// Among which the best is looked for.
std::vector<FioShape> TunedFioShapes();

struct FioResult {
  double bytes_per_second = 0;
  double cpu_seconds_per_byte = 0;
};

class Fio {
 public:
  // The one on PATH. Nothing if there is none that runs.
  static std::optional<Fio> Find();

  const std::string& version() const { return version_; }  // "fio-3.33"

  // For `seconds`, from `offset` of `file` to `end` and from `offset` again. Errors: what fio says;
  // DeadlineExceeded if it doesn't end.
  absl::StatusOr<FioResult> Run(const FioShape& shape, IoMode mode, const DirectFile& file,
                                Bytes offset, Bytes end, double seconds) const;

 private:
  Fio(std::string program, std::string version)
      : program_(std::move(program)), version_(std::move(version)) {}

  std::string program_;
  std::string version_;
};

// What a report of fio's says. Errors: InvalidArgument, if it is none, or of a job that failed.
absl::StatusOr<FioResult> ParseFioReport(const std::string& text);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_FIO_H_
