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
      places_(spans_max > 0 ? std::make_unique<Place[]>(spans_max) : nullptr) {}

TrackId TraceEvents::AddTrack(std::string_view name) {
  tracks_.emplace_back(name);
  return static_cast<TrackId>(tracks_.size() - 1);
}

void TraceEvents::Record(TrackId track, const char* name, int64_t id, TimePoint begin,
                         TimePoint end) {
  if (spans_max_ == 0) return;
  const uint64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  const uint64_t first = first_.load(std::memory_order_relaxed);
  if (number < first || number - first >= spans_max_) return;
  Place& place = places_[number % spans_max_];
  uint64_t state = place.state.load(std::memory_order_relaxed);
  // A place that somebody has been writing since before a Clear is left to him.
  if (state % 2 == 1 || state > 2 * number ||
      !place.state.compare_exchange_strong(state, 2 * number + 1, std::memory_order_relaxed)) {
    lost_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  // A reader that sees one of these sees the odd state too, if it looks again.
  place.name.store(name, std::memory_order_release);
  place.id.store(id, std::memory_order_release);
  place.begin.store(begin.count(), std::memory_order_release);
  place.end.store(end.count(), std::memory_order_release);
  place.track.store(track, std::memory_order_release);
  place.state.store(2 * number + 2, std::memory_order_release);
}

size_t TraceEvents::dropped() const {
  const uint64_t wanted = next_.load(std::memory_order_relaxed);
  const uint64_t first = first_.load(std::memory_order_relaxed);
  const uint64_t over = wanted > first + spans_max_ ? wanted - first - spans_max_ : 0;
  return spans_max_ == 0 ? 0 : over + lost_.load(std::memory_order_relaxed);
}

void TraceEvents::Clear() {
  first_.store(next_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  lost_.store(0, std::memory_order_relaxed);
}

std::vector<TraceEvents::Span> TraceEvents::Spans() const {
  const uint64_t first = first_.load(std::memory_order_relaxed);
  const uint64_t end = std::min(next_.load(std::memory_order_relaxed), first + spans_max_);
  std::vector<Span> spans;
  for (uint64_t number = first; number < end; ++number) {
    const Place& place = places_[number % spans_max_];
    if (place.state.load(std::memory_order_acquire) != 2 * number + 2) continue;
    const Span span{.name = place.name.load(std::memory_order_acquire),
                    .id = place.id.load(std::memory_order_acquire),
                    .begin = TimePoint(place.begin.load(std::memory_order_acquire)),
                    .end = TimePoint(place.end.load(std::memory_order_acquire)),
                    .track = place.track.load(std::memory_order_acquire)};
    if (place.state.load(std::memory_order_relaxed) == 2 * number + 2) spans.push_back(span);
  }
  return spans;
}

// Spans of one track may overlap (several reads are in flight); the format draws each thread as a
// stack, so a track takes as many lanes, each a thread, as spans overlap.
absl::Status TraceEvents::WriteChromeJson(const std::string& path,
                                          const std::string& beside) const {
  const std::vector<Span> recorded = Spans();
  std::vector<std::vector<const Span*>> by_track(tracks_.size());
  for (const Span& span : recorded) by_track[span.track].push_back(&span);
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
  if (!beside.empty()) document["sluice"] = nlohmann::ordered_json::parse(beside);
  std::ofstream file(path);
  // Names are the caller's, and need not be UTF-8.
  file << JsonText(std::move(document), -1);
  file.close();
  if (!file) return ErrnoStatus(errno, fmt::format("writing the trace to {}", path));
  return absl::OkStatus();
}

}  // namespace sluice
