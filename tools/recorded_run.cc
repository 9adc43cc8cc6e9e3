#include "tools/recorded_run.h"

#include <cstdint>

#include "core/file_bytes.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/json_file.h"
#include "tools/run_trace.h"

namespace sluice::tools {

namespace {

constexpr int kDepthMax = 20;  // of what is kept

absl::Status Wrong(const std::string& source, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{} {}", source, what));
}

}  // namespace

absl::StatusOr<Recording> ReadRecordedRun(const std::string& path) {
  constexpr auto kMost = static_cast<size_t>(RunTrace::kFileBytesMax);
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadBytes(path, 0, kMost + 1));
  if (text.size() > kMost) return Wrong(path, "has more than 1 GiB");
  return ParseRecordedRun(text, path);
}

absl::StatusOr<Recording> ParseRecordedRun(const std::string& text, const std::string& source) {
  bool too_deep = false;
  // Of the outermost object nothing but "sluice" is kept.
  const auto keep = [&too_deep](int depth, Json::parse_event_t event, const Json& value) {
    too_deep = too_deep || depth > kDepthMax;
    return !too_deep && (depth != 1 || event != Json::parse_event_t::key || value == "sluice");
  };
  const Json json = Json::parse(text, keep, /*allow_exceptions=*/false);
  if (too_deep) return Wrong(source, "is nested too deeply");
  if (json.is_discarded()) return Wrong(source, "is not JSON");
  if (!json.is_object() || !json.contains("sluice")) {
    return Wrong(source,
                 "holds no recording: it must be a trace of Sluice's (trace_spans and "
                 "write_trace(), or the demo's --trace)");
  }
  absl::StatusOr<Recording> recording = ReadRecording(json["sluice"]);
  if (recording.ok()) return recording;
  return absl::Status(recording.status().code(),
                      fmt::format("{}: {}", source, Message(recording.status())));
}

}  // namespace sluice::tools
