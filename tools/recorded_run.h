// tools/recorded_run.h
//
// The recording in a trace that sluice_trace_write wrote: everything else in the file is passed
// over.

#ifndef SLUICE_TOOLS_RECORDED_RUN_H_
#define SLUICE_TOOLS_RECORDED_RUN_H_

#include <string>

#include "absl/status/statusor.h"
#include "offload/sim/recording.h"

namespace sluice::tools {

// Errors: those of reading the file, and of ReadRecording, naming the file; InvalidArgument if it
// is no trace, or none with a recording.
absl::StatusOr<Recording> ReadRecordedRun(const std::string& path);
// The same of a file that holds `text`; source: for messages.
absl::StatusOr<Recording> ParseRecordedRun(const std::string& text, const std::string& source);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RECORDED_RUN_H_
