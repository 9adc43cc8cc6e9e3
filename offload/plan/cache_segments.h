// offload/plan/cache_segments.h
//
// What a cache holds: a list of segments that tile it, in order. A segment is a unit, free, or a
// leftover, which is nobody's and not to be used. Free neighbours are one segment. A segment is
// named by its place, which stays its own until it is replaced or merged.
//
// Every call takes constant time, but those that say otherwise. Grows to the most segments there
// ever were, beyond what was reserved. One thread.

#ifndef SLUICE_OFFLOAD_PLAN_CACHE_SEGMENTS_H_
#define SLUICE_OFFLOAD_PLAN_CACHE_SEGMENTS_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "core/types.h"

namespace sluice {

class SegmentList {
 public:
  using Place = uint32_t;
  static constexpr Place kNone = std::numeric_limits<Place>::max();
  enum class Kind : uint8_t { kGone, kUnit, kFree, kLeftover };
  struct Segment {
    Kind kind = Kind::kGone;
    UnitIndex unit;  // of kUnit
    Place before = kNone;
    Place after = kNone;
    Bytes offset;
    Bytes size;
  };

  SegmentList() = default;
  // One free segment of `capacity`, or none.
  explicit SegmentList(Bytes capacity, size_t reserved = 0);

  const Segment& at(Place place) const { return segments_[place]; }
  Place first() const { return first_; }
  size_t places() const { return segments_.size(); }  // all are below
  bool Is(Place place, Kind kind) const { return place != kNone && segments_[place].kind == kind; }
  // Whether a segment begins at `offset` and has this place.
  bool Begins(Place place, Bytes offset) const {
    return place < segments_.size() && segments_[place].kind != Kind::kGone &&
           segments_[place].offset == offset;
  }

  // Puts `unit` at the start of `first` to `last`, both included, which are gone then; what is left
  // of them becomes free. Takes time for each. Returns the unit's place, which is `first`.
  Place Put(Place first, Place last, UnitIndex unit, Bytes bytes);
  // The unit has left: what it had becomes a leftover.
  void Leave(Place place);
  // A unit's or leftover's segment becomes free. Returns the place of the free segment.
  Place Free(Place place);

 private:
  Place Make();
  void Drop(Place place);  // unlinks it
  void Join(Place place, Place next);

  std::vector<Segment> segments_;
  std::vector<Place> gone_;  // places to be used again
  Place first_ = kNone;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_CACHE_SEGMENTS_H_
