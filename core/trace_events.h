// core/trace_events.h
//
// What happened when, for a person to look at: spans on named tracks, written as Chrome trace JSON,
// which Perfetto and chrome://tracing open. Recording is lock-free into memory taken at
// construction; when that is full, further spans are counted and dropped, and the file says so.
//
// Threads: any, all at a time, but AddTrack comes before the first Record.

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

  // Forgets all spans. One that is being recorded meanwhile is kept whole, or forgotten.
  void Clear();

  // What is recorded by now; `beside`, if not empty, is JSON that the file has under "sluice",
  // where viewers don't look. Errors: those of writing the file.
  absl::Status WriteChromeJson(const std::string& path, const std::string& beside = "") const;

 private:
  struct Span {
    const char* name;
    int64_t id;
    TimePoint begin;
    TimePoint end;
    TrackId track;
  };
  // Spans are numbered from 0 on, and number n lies in place n % spans_max. A place is written by
  // whoever has made its state odd; its fields are atomic, for a reader may look at it meanwhile.
  struct Place {
    std::atomic<uint64_t> state{0};  // 0: empty; 2n + 1: n is being written; 2n + 2: it is there
    std::atomic<const char*> name{nullptr};
    std::atomic<int64_t> id{0};
    std::atomic<int64_t> begin{0};
    std::atomic<int64_t> end{0};
    std::atomic<TrackId> track{0};
  };

  std::vector<Span> Spans() const;  // by number

  const size_t spans_max_;
  std::unique_ptr<Place[]> places_;
  std::atomic<uint64_t> next_{0};   // number
  std::atomic<uint64_t> first_{0};  // that was not forgotten
  std::atomic<uint64_t> lost_{0};   // their place was still being written
  std::vector<std::string> tracks_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_TRACE_EVENTS_H_
