// tools/bench_cases.h
//
// The benchmarks of `sluice bench`, and what they share. Each measures for about as long as it is
// told, and then a little, since it has a few rounds of everything whatever they take.

#ifndef SLUICE_TOOLS_BENCH_CASES_H_
#define SLUICE_TOOLS_BENCH_CASES_H_

#include <cstddef>
#include <ctime>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/types.h"
#include "fmt/format.h"
#include "nvme/io_engine.h"
#include "offload/run/factory.h"
#include "tools/bench_report.h"

namespace sluice::tools {

struct BenchOptions {
  double seconds = 10;
};

// Errors of each: what this machine lacks for it.
absl::StatusOr<BenchReport> BenchAdam(const BenchOptions& options);
absl::StatusOr<BenchReport> BenchControl(const BenchOptions& options);
absl::StatusOr<BenchReport> BenchCopy(const BenchOptions& options);

struct IoBenchOptions {
  std::string path = ".";
  std::optional<Bytes> size;  // of the file; none: chosen
  double seconds = 60;
  IoEngineKind engine = IoEngineKind::kAuto;
  IoEngine::Limits limits = {};
  Bytes block = Bytes(12 * kChunkElementsDefault);  // a chunk's states
  std::vector<std::string> notes = {};              // to be said too
};
// Errors: what the directory lacks; those of transfers.
absl::StatusOr<BenchReport> BenchIo(const IoBenchOptions& options);

// Whether there is another round: until the time is over, but a few at least.
class RoundClock {
 public:
  explicit RoundClock(double seconds, int least = 3) : seconds_(seconds), least_(least) {}
  bool Another() {
    constexpr int kMost = 101;
    ++done_;
    return done_ < least_ || (done_ < kMost && Seconds(clock_.Now() - begin_) < seconds_);
  }

 private:
  const SteadyClock clock_;
  const TimePoint begin_ = clock_.Now();
  const double seconds_;
  const int least_;
  int done_ = 0;
};

inline double ThreadCpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What computed `value` is not optimised away.
template <typename T>
void Keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

inline std::string CoresText(size_t cores) {
  return fmt::format("{} core{}", cores, cores == 1 ? "" : "s");
}

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_BENCH_CASES_H_
