// offload/plan/free_rooms.h
//
// The free segments of a cache, in the order of their offsets, and of them the first that is large
// enough. A treap whose nodes know the largest size below them: every call takes time for the
// logarithm of how many there are. Grows to the highest place there ever was. One thread.

#ifndef SLUICE_OFFLOAD_PLAN_FREE_ROOMS_H_
#define SLUICE_OFFLOAD_PLAN_FREE_ROOMS_H_

#include <cstdint>
#include <vector>

#include "core/types.h"
#include "offload/plan/cache_segments.h"

namespace sluice {

class FreeRooms {
 public:
  using Place = SegmentList::Place;

  void Clear() { root_ = SegmentList::kNone; }
  void Add(Place place, Bytes offset, Bytes size);
  void Remove(Place place);  // one that was added
  // The one of `bytes` or more with the lowest offset; kNone if there is none.
  Place First(Bytes bytes) const;

 private:
  static constexpr Place kNone = SegmentList::kNone;
  struct Node {
    Bytes offset;
    Bytes size;
    Bytes largest;  // of itself and all below
    uint32_t weight = 0;
    Place left = kNone;
    Place right = kNone;
  };
  struct Halves {
    Place left;
    Place right;
  };
  void Refresh(Place place);
  Halves Split(Place tree, Bytes offset);  // what lies before `offset`, and what does not
  Place Join(Place left, Place right);

  std::vector<Node> nodes_;  // by place
  Place root_ = kNone;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_FREE_ROOMS_H_
