#include "tools/run_trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice::tools {

namespace {

// "nvme read 2" is another lane of "nvme read", and "read 17" one of many called "read".
std::string WithoutNumber(const std::string& name) {
  const size_t digits = name.find_last_not_of("0123456789");
  if (digits == std::string::npos || digits + 1 == name.size() || name[digits] != ' ') return name;
  return name.substr(0, digits);
}

// Takes the document piece by piece. Events are the objects in the list "traceEvents" of the
// outermost object; everything else is passed over.
class Events final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t value) override {
    return Number(static_cast<double>(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Number(static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return Number(value); }
  bool string(string_t& value) override {
    if (depth_ == kInArguments && in_events_ && key_ == "name") event_.track = value;
    if (depth_ != kInEvent || !in_events_) return true;
    if (key_ == "ph") event_.kind = value;
    if (key_ == "name") event_.name = value;
    return true;
  }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    if (++depth_ == kInEvent && in_events_) event_ = Event();
    return true;
  }
  bool end_object() override {
    const bool ends_event = depth_-- == kInEvent && in_events_;
    return !ends_event || End();
  }
  bool start_array(size_t) override {
    if (++depth_ == kInList && key_ == "traceEvents") in_events_ = found_ = true;
    return true;
  }
  bool end_array() override {
    if (depth_-- == kInList) in_events_ = false;
    return true;
  }
  bool key(string_t& value) override {
    key_ = value;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    problem = fmt::format("is not JSON from byte {} on", position);
    return false;
  }

  bool found() const { return found_; }
  std::string problem;
  RunTrace trace;

 private:
  static constexpr int kInList = 2;
  static constexpr int kInEvent = 3;
  static constexpr int kInArguments = 4;
  struct Event {
    std::string kind, name, track;
    std::optional<double> thread, begin, length;
  };

  bool Number(double value) {
    if (depth_ != kInEvent || !in_events_) return true;
    if (key_ == "tid") event_.thread = value;
    if (key_ == "ts") event_.begin = value;
    if (key_ == "dur") event_.length = value;
    return true;
  }

  bool End() {
    if (!event_.thread) return true;
    if (event_.kind == "M" && event_.name == "thread_name") {
      return TrackOf(*event_.thread, WithoutNumber(event_.track)).has_value();
    }
    if (event_.kind != "X" || !event_.begin || !event_.length) return true;
    const double end = *event_.begin + *event_.length;
    if (!std::isfinite(end) || *event_.length < 0) return true;
    if (++spans_ > RunTrace::kSpansMax) {
      problem = fmt::format("has more than {} spans: record fewer steps", RunTrace::kSpansMax);
      return false;
    }
    const auto track = TrackOf(*event_.thread, fmt::format("thread {}", *event_.thread));
    if (!track) return false;
    trace.tracks[*track].spans.push_back(
        {.begin_us = *event_.begin, .end_us = end, .name = NameOf(WithoutNumber(event_.name))});
    return true;
  }

  // That `thread` is a lane of; if it is new, the one called `name`.
  std::optional<size_t> TrackOf(double thread, const std::string& name) {
    const auto known = tracks_by_thread_.find(thread);
    if (known != tracks_by_thread_.end()) return known->second;
    if (tracks_by_thread_.size() == RunTrace::kThreadsMax) {
      problem = fmt::format("has more than {} threads: it is none of Sluice's traces",
                            RunTrace::kThreadsMax);
      return std::nullopt;
    }
    const auto [at, is_new] = tracks_by_name_.emplace(name, trace.tracks.size());
    if (is_new) trace.tracks.push_back({.name = name, .spans = {}});
    tracks_by_thread_[thread] = at->second;
    return at->second;
  }

  uint32_t NameOf(const std::string& name) {
    const auto known = names_.find(name);
    if (known != names_.end()) return known->second;
    if (trace.names.size() >= RunTrace::kNamesMax && name != "other") return NameOf("other");
    names_[name] = static_cast<uint32_t>(trace.names.size());
    trace.names.push_back(name);
    return names_[name];
  }

  int depth_ = 0;
  bool in_events_ = false;
  bool found_ = false;
  std::string key_;
  Event event_;
  size_t spans_ = 0;
  std::map<double, size_t> tracks_by_thread_;
  std::map<std::string, size_t> tracks_by_name_;
  std::map<std::string, uint32_t> names_;
};

absl::Status Wrong(const std::string& source, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{} {}", source, what));
}

// What `events` took from a document; whole: it ended well.
absl::StatusOr<RunTrace> Taken(Events events, bool whole, const std::string& source) {
  if (!whole) return Wrong(source, events.problem.empty() ? "is not JSON" : events.problem);
  if (!events.found()) return Wrong(source, "is no trace: it has no list 'traceEvents'");
  std::erase_if(events.trace.tracks, [](const RunTrace::Track& t) { return t.spans.empty(); });
  if (events.trace.tracks.empty())
    return Wrong(source, "has no spans: record some (trace_spans, or the demo's --trace)");
  return std::move(events.trace);
}

}  // namespace

absl::StatusOr<RunTrace> ReadRunTrace(const std::string& path) {
  // A FIFO's open would wait for a writer.
  const int descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, fmt::format("reading {}", path));
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fdopen(descriptor, "rb"), fclose);
  struct stat info {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode))
    return Wrong(path, "is not a regular file");
  if (info.st_size > RunTrace::kFileBytesMax) return Wrong(path, "has more than 1 GiB");
  Events events;
  const bool whole = nlohmann::json::sax_parse(file.get(), &events);
  if (ferror(file.get()) != 0) return ErrnoStatus(errno, fmt::format("reading {}", path));
  return Taken(std::move(events), whole, path);
}

absl::StatusOr<RunTrace> ParseRunTrace(std::string_view text, const std::string& source) {
  Events events;
  const bool whole = nlohmann::json::sax_parse(text, &events);
  return Taken(std::move(events), whole, source);
}

}  // namespace sluice::tools
