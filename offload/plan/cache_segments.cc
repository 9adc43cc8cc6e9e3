#include "offload/plan/cache_segments.h"

#include "core/status.h"

namespace sluice {

SegmentList::SegmentList(Bytes capacity, size_t reserved) {
  segments_.reserve(reserved);
  gone_.reserve(reserved);
  if (capacity == Bytes(0)) return;
  first_ = Make();
  segments_[first_].kind = Kind::kFree;
  segments_[first_].size = capacity;
}

SegmentList::Place SegmentList::Make() {
  if (gone_.empty()) {
    segments_.emplace_back();
    return static_cast<Place>(segments_.size() - 1);
  }
  const Place place = gone_.back();
  gone_.pop_back();
  segments_[place] = {};
  return place;
}

void SegmentList::Join(Place place, Place next) {
  (place == kNone ? first_ : segments_[place].after) = next;
  if (next != kNone) segments_[next].before = place;
}

void SegmentList::Drop(Place place) {
  Join(segments_[place].before, segments_[place].after);
  segments_[place].kind = Kind::kGone;
  gone_.push_back(place);
}

SegmentList::Place SegmentList::Put(Place first, Place last, UnitIndex unit, Bytes bytes) {
  const Bytes offset = segments_[first].offset;
  const Bytes end = segments_[last].offset + segments_[last].size;
  SLUICE_CHECK(end - offset >= bytes);
  while (first != last) {
    const Place next = segments_[first].after;
    const bool reached = next == last;
    Drop(next);
    if (reached) break;
  }
  Segment& put = segments_[first];
  put.kind = Kind::kUnit;
  put.unit = unit;
  put.size = bytes;
  if (end == offset + bytes) return first;
  const Place next = put.after;
  if (Is(next, Kind::kFree)) {
    segments_[next].size += segments_[next].offset - (offset + bytes);
    segments_[next].offset = offset + bytes;
    return first;
  }
  const Place rest = Make();
  segments_[rest].kind = Kind::kFree;
  segments_[rest].offset = offset + bytes;
  segments_[rest].size = end - offset - bytes;
  Join(first, rest);
  Join(rest, next);
  return first;
}

void SegmentList::Leave(Place place) {
  SLUICE_CHECK(Is(place, Kind::kUnit));
  segments_[place].kind = Kind::kLeftover;
}

SegmentList::Place SegmentList::Free(Place place) {
  SLUICE_CHECK(Is(place, Kind::kUnit) || Is(place, Kind::kLeftover));
  segments_[place].kind = Kind::kFree;
  const Place after = segments_[place].after;
  if (Is(after, Kind::kFree)) {
    segments_[place].size += segments_[after].size;
    Drop(after);
  }
  const Place before = segments_[place].before;
  if (!Is(before, Kind::kFree)) return place;
  segments_[before].size += segments_[place].size;
  Drop(place);
  return before;
}

}  // namespace sluice
