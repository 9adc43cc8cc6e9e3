// core/trace_events.h
//
// What happened when, for a person to look at: spans on named tracks, written as Chrome trace JSON,
// which Perfetto and chrome://tracing open. Recording is lock-free into memory taken at
// construction; when that is full, further spans are counted and dropped, and the file says so.

#ifndef SLUICE_CORE_TRACE_EVENTS_H_
#define SLUICE_CORE_TRACE_EVENTS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "core/clock.h"

namespace sluice {

using TrackId = uint16_t;

class TraceEvents {
 public:
  // Room for `spans_max` spans (48 bytes each). 0 records nothing.
  explicit TraceEvents(size_t spans_max);

  // Tracks are made at start, before the first Record. Order is the order of the picture; spans of
  // one track that overlap are drawn below each other.
  TrackId AddTrack(std::string_view name);

  // Any thread. `name` must be a literal or otherwise outlive this object; `id` is shown beside it
  // ("read #17").
  void Record(TrackId track, const char* name, int64_t id, TimePoint begin, TimePoint end);

  bool enabled() const { return spans_max_ > 0; }
  size_t dropped() const;

  // Forgets all spans. Call while nothing records.
  void Clear();

  // Errors: those of writing the file. Call while nothing records.
  absl::Status WriteChromeJson(const std::string& path) const;

 private:
  struct Span {
    const char* name;
    int64_t id;
    TimePoint begin;
    TimePoint end;
    TrackId track;
    std::atomic<bool> complete{false};
  };
  const size_t spans_max_;
  std::unique_ptr<Span[]> spans_;
  std::atomic<size_t> next_{0};
  std::vector<std::string> tracks_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_TRACE_EVENTS_H_
