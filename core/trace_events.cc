#include "core/trace_events.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <utility>

#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {

TraceEvents::TraceEvents(size_t spans_max)
    : spans_max_(spans_max),
      spans_(spans_max > 0 ? std::make_unique<Span[]>(spans_max) : nullptr) {}

TrackId TraceEvents::AddTrack(std::string_view name) {
  tracks_.emplace_back(name);
  return static_cast<TrackId>(tracks_.size() - 1);
}

void TraceEvents::Record(TrackId track, const char* name, int64_t id, TimePoint begin,
                         TimePoint end) {
  if (spans_max_ == 0) return;
  const size_t index = next_.fetch_add(1, std::memory_order_relaxed);
  if (index >= spans_max_) return;
  Span& span = spans_[index];
  span.name = name;
  span.id = id;
  span.begin = begin;
  span.end = end;
  span.track = track;
  span.complete.store(true, std::memory_order_release);
}

size_t TraceEvents::dropped() const {
  const size_t wanted = next_.load(std::memory_order_relaxed);
  return wanted > spans_max_ ? wanted - spans_max_ : 0;
}

void TraceEvents::Clear() {
  const size_t used = std::min(next_.load(), spans_max_);
  for (size_t i = 0; i < used; ++i) spans_[i].complete.store(false);
  next_.store(0);
}

// Spans of one track may overlap (several reads are in flight); the format draws each thread as a
// stack, so a track takes as many lanes, each a thread, as spans overlap.
absl::Status TraceEvents::WriteChromeJson(const std::string& path) const {
  std::vector<std::vector<const Span*>> by_track(tracks_.size());
  for (size_t i = 0; i < std::min(next_.load(), spans_max_); ++i) {
    if (spans_[i].complete.load(std::memory_order_acquire))
      by_track[spans_[i].track].push_back(&spans_[i]);
  }
  constexpr int kLanesPerTrack = 1000;
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  const auto name_lane = [&](size_t track, size_t lane) {
    const size_t tid = (track + 1) * kLanesPerTrack + lane;
    const std::string name =
        lane == 0 ? tracks_[track] : fmt::format("{} {}", tracks_[track], lane + 1);
    events.push_back({{"ph", "M"},
                      {"pid", 1},
                      {"tid", tid},
                      {"name", "thread_name"},
                      {"args", {{"name", name}}}});
    events.push_back({{"ph", "M"},
                      {"pid", 1},
                      {"tid", tid},
                      {"name", "thread_sort_index"},
                      {"args", {{"sort_index", tid}}}});
  };
  for (size_t track = 0; track < by_track.size(); ++track) {
    std::vector<const Span*>& spans = by_track[track];
    std::stable_sort(spans.begin(), spans.end(),
                     [](const Span* a, const Span* b) { return a->begin < b->begin; });
    std::vector<TimePoint> lane_free;
    for (const Span* span : spans) {
      size_t lane = 0;
      while (lane < lane_free.size() && lane_free[lane] > span->begin) ++lane;
      if (lane == lane_free.size()) {
        lane_free.push_back(span->end);
        name_lane(track, lane);
      }
      lane_free[lane] = span->end;
      events.push_back({{"ph", "X"},
                        {"pid", 1},
                        {"tid", (track + 1) * kLanesPerTrack + lane},
                        {"name", span->id < 0 ? std::string(span->name)
                                              : fmt::format("{} {}", span->name, span->id)},
                        {"ts", static_cast<double>(span->begin.count()) / 1e3},
                        {"dur", static_cast<double>((span->end - span->begin).count()) / 1e3}});
    }
  }
  nlohmann::ordered_json document = {{"displayTimeUnit", "ms"},
                                     {"otherData", {{"spans_dropped", std::to_string(dropped())}}},
                                     {"traceEvents", std::move(events)}};
  std::ofstream file(path);
  // Names are the caller's, and need not be UTF-8.
  file << JsonText(std::move(document), -1);
  file.close();
  if (!file) return ErrnoStatus(errno, fmt::format("writing the trace to {}", path));
  return absl::OkStatus();
}

}  // namespace sluice
