// offload/plan/schedule.h
//
// The schedule: which units are moved into HBM, where to, what makes room, and how early each move
// may begin. A pure function of a trace and a capacity.
//
// It replays the trace. When a unit is acquired that is not there, room is made by evicting the
// neighbouring units whose next use is farthest in the future (Belady 1966, which is optimal for
// units of one size; for mixed sizes it is applied to windows of neighbours whose room together
// suffices, since a unit must lie in one piece). A move may begin as soon as the last acquisition
// of everything it evicts has passed and that is released: moves run ahead of their use by as much
// as the capacity allows, and in the order in which they are needed.

#ifndef SLUICE_OFFLOAD_PLAN_SCHEDULE_H_
#define SLUICE_OFFLOAD_PLAN_SCHEDULE_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "core/types.h"
#include "offload/plan/trace.h"

namespace sluice {

// A stretch of the cache: a unit, or free, or (held without a unit) not to be used.
struct Segment {
  std::optional<UnitIndex> unit;
  Bytes offset;
  Bytes size;
  // Segments that can't be evicted yet: the unit is acquired (or still viewed) at the start of the
  // replay.
  bool held = false;
};

struct Move {
  UnitIndex unit;
  Bytes offset;
  std::vector<UnitIndex> evicted;
  size_t not_before;  // acquisitions that must have happened (counted as `first` is); evicted units
                      // also be released
  size_t needed_at;   // the acquisition that wants it
};

struct ScheduleInput {
  const Trace* trace;
  size_t first = 0;                   // acquisitions of the trace that have already happened
  std::span<const Bytes> unit_bytes;  // by unit; 0: lives elsewhere for good and is never moved
  std::span<const Segment> segments;  // what the cache holds: tiles [0, capacity), in order
};

struct Schedule {
  std::vector<Move> moves;  // in the order of need
  Bytes bytes;              // of all moves
  // Acquisitions for which no room can be made, whatever is waited for: too much is held at that
  // moment.
  std::vector<size_t> impossible;
};

Schedule MakeSchedule(const ScheduleInput& input);

// How `bytes` might be placed among `segments`: the window of neighbours, none held, whose nearest
// next use is farthest; ties go to what has been free longest, so that the move may begin early,
// then to fewer evicted bytes, then to the lowest offset. By segment: `next_use`, SIZE_MAX for
// never and for free ones; `free_from`, when its last use began, 0 for free ones. Returns [first,
// last) or nothing.
struct Window {
  size_t first;
  size_t last;
};
std::optional<Window> ChooseWindow(std::span<const Segment> segments,
                                   std::span<const size_t> next_use,
                                   std::span<const size_t> free_from, Bytes bytes);

// Puts `unit` at the start of `window`; what is left of it becomes free. Neighbouring free segments
// are merged.
void Place(std::vector<Segment>* segments, Window window, UnitIndex unit, Bytes bytes);
void MergeFree(std::vector<Segment>* segments);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_SCHEDULE_H_
