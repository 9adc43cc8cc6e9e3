// tools/run_trace.h
//
// What happened when in a run: the spans of a trace that sluice_trace_write wrote (Chrome trace
// events), by track. It is read as a stream: of a file of any size only the spans are kept, 24
// bytes each, and not more of them than a bound.

#ifndef SLUICE_TOOLS_RUN_TRACE_H_
#define SLUICE_TOOLS_RUN_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::tools {

struct RunTrace {
  static constexpr size_t kSpansMax = 4'000'000;
  static constexpr size_t kThreadsMax = 10'000;
  static constexpr size_t kNamesMax = 1'000;
  static constexpr int64_t kFileBytesMax = int64_t{1} << 30;

  struct Span {
    double begin_us = 0;
    double end_us = 0;
    uint32_t name = 0;  // in names
  };
  struct Track {
    std::string name;
    std::vector<Span> spans;
  };

  // In the order of the file. What a track draws in several lanes is one.
  std::vector<Track> tracks;
  std::vector<std::string> names;  // of spans, without the number behind them
};

// Errors: InvalidArgument naming the file if it is no trace, has no spans, or is beyond the bounds;
// those of reading it.
absl::StatusOr<RunTrace> ReadRunTrace(const std::string& path);
// The trace that `text` is; source: for messages. Errors: likewise.
absl::StatusOr<RunTrace> ParseRunTrace(std::string_view text, const std::string& source);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_TRACE_H_
