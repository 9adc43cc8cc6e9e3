// offload/plan/schedule.h
//
// The schedule: which units are moved into HBM, where to, what makes room, and how early each move
// may begin. It follows from a trace and from what the cache holds, and from nothing else.
//
// A Planner replays the trace. When a unit is acquired that is not there, room is made by evicting
// the neighbouring units whose next use is farthest in the future (Belady 1966, which is optimal
// for units of one size; for mixed sizes it is applied to windows of neighbours whose room together
// suffices, since a unit must lie in one piece). A move may begin as soon as the last acquisition
// of everything it evicts has passed and that is released: moves run ahead of their use by as much
// as the capacity allows, and in the order in which they are needed.
//
// Among windows whose nearest next use is the same, the one goes whose units have all been used
// first, so that the move may begin early; then what evicts fewer bytes; then the lowest offset.
// What is free anyway goes before all else. Of what is neither used in this plan nor has been,
// units go in the order of their offsets until some neighbours suffice.
//
// It replays only as far as the next move: a plan is continued move by move, and what a departure
// throws away was never made. To begin takes time for what the cache holds; to go on takes
// logarithmic time for each step of the trace, and for each unit that is looked at when room is
// made: what is used last is added, unit by unit, until some neighbours suffice.
//
// One thread. Allocates only when a trace or the cache is larger than ever before.

#ifndef SLUICE_OFFLOAD_PLAN_SCHEDULE_H_
#define SLUICE_OFFLOAD_PLAN_SCHEDULE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "core/types.h"
#include "offload/plan/cache_segments.h"
#include "offload/plan/free_rooms.h"
#include "offload/plan/position_set.h"
#include "offload/plan/trace.h"

namespace sluice {

// What the schedule counts in: acquisitions since the plan began; those that waited then come
// first.
struct Move {
  UnitIndex unit;
  SegmentList::Place place;  // where the room begins
  Bytes offset;              // the same, in the cache
  size_t not_before;         // so many must have happened; evicted units also be released
  size_t needed_at;          // the acquisition that wants it
  bool possible;  // else no room can be made for it, whatever is waited for: too much is held then
};

class Planner {
 public:
  // `unit_bytes`, by unit: 0 if it lives elsewhere for good and is never moved.
  explicit Planner(std::vector<Bytes> unit_bytes);
  Bytes unit_bytes(UnitIndex unit) const { return unit_bytes_[unit.value()]; }

  struct Ahead {
    std::span<const UnitIndex> waiting;   // acquired already, in order, and not there
    const IndexedTrace* trace = nullptr;  // then what follows `happened` of its acquisitions
    size_t happened = 0;
    const IndexedTrace* next = nullptr;  // then all of this
  };
  // Plans anew from `segments`, where units that are `held` can't be evicted before the trace
  // releases them. The traces stay as they are until Begin or Clear.
  void Begin(const Ahead& ahead, const SegmentList& segments,
             absl::FunctionRef<bool(UnitIndex)> held);
  void Clear();

  // The next move, or null. Stays until Pop.
  const Move* Next();
  void Pop() { found_ = false; }
  std::span<const UnitIndex> evicted() const { return evicted_; }  // by the next move

 private:
  using Place = SegmentList::Place;
  struct Unit {
    uint64_t plan = 0;  // what follows is of this plan; else the unit is not there
    int held = 0;
    Place place = SegmentList::kNone;
    size_t free_from = 0;  // acquisitions after which its last use has begun
    size_t next_use = 0;   // while it may be evicted
  };
  // The ends of a run of segments that may go know each other, and the run's room.
  struct Run {
    uint64_t search = 0;
    Place other_end = SegmentList::kNone;
    Bytes room;
  };
  struct Window {
    Place first = SegmentList::kNone;
    Place last = SegmentList::kNone;
  };

  bool Step();
  void Acquire(UnitIndex unit);
  void Release(UnitIndex unit);
  bool MoveIn(UnitIndex unit);
  Window FindWindow(Bytes bytes);
  Window FindEvictable(Bytes bytes);
  bool Extend(Place place, Bytes bytes, Window* run);
  Window Narrow(Window run, Place last_added, Bytes bytes);
  void Evict(UnitIndex unit);
  void Evictable(UnitIndex unit);
  Unit& At(UnitIndex unit);
  UnitIndex UnitAt(size_t position) const;
  size_t NextUse(UnitIndex unit) const;

  const std::vector<Bytes> unit_bytes_;
  Ahead ahead_;
  size_t of_trace_ = 0;    // positions from `waiting` on that are of `trace`
  size_t part_ = 0;        // 0: waiting, 1: trace, 2: next, 3: the end
  size_t step_ = 0;        // of that part
  size_t position_ = 0;    // acquisitions passed
  size_t positions_ = 0;   // acquisitions in all
  size_t not_before_ = 0;  // of the latest move
  uint64_t plan_ = 0;
  uint64_t search_ = 0;
  SegmentList segments_;
  FreeRooms free_;
  std::vector<Unit> units_;
  PositionSet by_next_use_;        // of units that may be evicted
  PositionSet by_last_use_;        // of those that are never used again
  std::vector<UnitIndex> unused_;  // and neither were before, in the order of their offsets
  size_t unused_begin_ = 0;        // those before are gone
  std::vector<Run> runs_;          // by place
  std::vector<Place> narrowed_;    // while a run is narrowed
  std::vector<size_t> free_before_;
  Move move_{};
  bool found_ = false;
  std::vector<UnitIndex> evicted_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_SCHEDULE_H_
