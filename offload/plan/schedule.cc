#include "offload/plan/schedule.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

namespace {
constexpr size_t kNever = IndexedTrace::kNever;
constexpr SegmentList::Place kNoPlace = SegmentList::kNone;
using Kind = SegmentList::Kind;
}  // namespace

Planner::Planner(std::vector<Bytes> unit_bytes)
    : unit_bytes_(std::move(unit_bytes)), units_(unit_bytes_.size()) {}

Planner::Unit& Planner::At(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  if (u.plan != plan_) u = {.plan = plan_};
  return u;
}

UnitIndex Planner::UnitAt(size_t position) const {
  const size_t waiting = ahead_.waiting.size();
  if (position < waiting) return ahead_.waiting[position];
  if (position < waiting + of_trace_)
    return ahead_.trace->acquisitions()[ahead_.happened + position - waiting];
  return ahead_.next->acquisitions()[position - waiting - of_trace_];
}

// What waits is not there, so nobody asks when it is used next before its wait has passed.
size_t Planner::NextUse(UnitIndex unit) const {
  const size_t waiting = ahead_.waiting.size();
  const size_t passed = position_ - std::min(position_, waiting);
  if (ahead_.trace != nullptr && passed < of_trace_) {
    const size_t use = ahead_.trace->NextUse(unit, ahead_.happened + passed);
    if (use != kNever) return waiting + use - ahead_.happened;
  }
  if (ahead_.next == nullptr) return kNever;
  const size_t use = ahead_.next->NextUse(unit, passed - std::min(passed, of_trace_));
  return use == kNever ? kNever : waiting + of_trace_ + use;
}

void Planner::Clear() {
  ahead_ = {};
  part_ = 3;
  found_ = false;
}

void Planner::Begin(const Ahead& ahead, const SegmentList& segments,
                    absl::FunctionRef<bool(UnitIndex)> held) {
  ahead_ = ahead;
  of_trace_ = ahead.trace == nullptr ? 0 : ahead.trace->acquisitions().size() - ahead.happened;
  positions_ = ahead.waiting.size() + of_trace_ +
               (ahead.next == nullptr ? 0 : ahead.next->acquisitions().size());
  part_ = step_ = position_ = not_before_ = 0;
  found_ = false;
  ++plan_;
  segments_ = segments;
  free_.Clear();
  by_next_use_.Reset(positions_);
  by_last_use_.Reset(positions_);
  unused_.clear();
  unused_begin_ = 0;
  for (Place p = segments_.first(); p != kNoPlace; p = segments_.at(p).after) {
    const SegmentList::Segment& s = segments_.at(p);
    if (s.kind == Kind::kFree) free_.Add(p, s.offset, s.size);
    if (s.kind != Kind::kUnit) continue;
    At(s.unit).place = p;
    if (held(s.unit)) {
      At(s.unit).held = 1;
    } else {
      Evictable(s.unit);
    }
  }
}

const Move* Planner::Next() {
  while (!found_ && part_ < 3) found_ = Step();
  return found_ ? &move_ : nullptr;
}

// One step of the trace. Returns whether it needs a move.
bool Planner::Step() {
  if (part_ == 0) {
    if (step_ < ahead_.waiting.size()) {
      Acquire(ahead_.waiting[step_++]);
    } else {
      part_ = 1;
      step_ = ahead_.trace == nullptr ? 0 : ahead_.trace->StepAfter(ahead_.happened);
    }
    return found_;
  }
  const IndexedTrace* const trace = part_ == 1 ? ahead_.trace : ahead_.next;
  if (trace == nullptr || step_ == trace->steps().size()) {
    ++part_;
    step_ = 0;
    return false;
  }
  const TraceStep step = trace->steps()[step_++];
  if (step.acquire) {
    Acquire(step.unit);
  } else {
    Release(step.unit);
  }
  return found_;
}

void Planner::Acquire(UnitIndex unit) {
  const size_t position = position_++;
  if (unit_bytes_[unit.value()] == Bytes(0)) return;
  Unit& u = At(unit);
  if (u.place == kNoPlace) {
    move_ = {.unit = unit,
             .place = kNoPlace,
             .offset = Bytes(0),
             .not_before = not_before_,
             .needed_at = position,
             .possible = false};
    evicted_.clear();
    found_ = true;
    move_.possible = MoveIn(unit);
    if (!move_.possible) return;
  } else if (u.held == 0) {
    by_next_use_.Erase(u.next_use);
  }
  ++u.held;
  u.free_from = position + 1;
}

void Planner::Release(UnitIndex unit) {
  if (unit_bytes_[unit.value()] == Bytes(0)) return;
  Unit& u = At(unit);
  if (u.held > 0 && --u.held == 0) Evictable(unit);
}

void Planner::Evictable(UnitIndex unit) {
  Unit& u = At(unit);
  u.next_use = NextUse(unit);
  if (u.next_use != kNever) return by_next_use_.Insert(u.next_use);
  if (u.free_from > 0) return by_last_use_.Insert(u.free_from - 1);
  unused_.push_back(unit);
}

void Planner::Evict(UnitIndex unit) {
  Unit& u = At(unit);
  u.place = kNoPlace;
  if (u.next_use != kNever) {
    by_next_use_.Erase(u.next_use);
  } else if (u.free_from > 0) {
    by_last_use_.Erase(u.free_from - 1);
  }
  move_.not_before = std::max(move_.not_before, u.free_from);
  evicted_.push_back(unit);
}

bool Planner::MoveIn(UnitIndex unit) {
  const Bytes bytes = unit_bytes_[unit.value()];
  const Window window = FindWindow(bytes);
  if (window.first == kNoPlace) return false;
  move_.place = window.first;
  move_.offset = segments_.at(window.first).offset;
  const Place end = segments_.at(window.last).after;
  for (Place p = window.first; p != end; p = segments_.at(p).after) {
    const SegmentList::Segment& s = segments_.at(p);
    if (s.kind == Kind::kUnit) Evict(s.unit);
    if (s.kind == Kind::kFree) free_.Remove(p);
  }
  // What is left over joins a free neighbour.
  if (segments_.Is(end, Kind::kFree)) free_.Remove(end);
  const Place place = segments_.Put(window.first, window.last, unit, bytes);
  const Place rest = segments_.at(place).after;
  if (segments_.Is(rest, Kind::kFree))
    free_.Add(rest, segments_.at(rest).offset, segments_.at(rest).size);
  At(unit).place = place;
  not_before_ = move_.not_before;
  return true;
}

Planner::Window Planner::FindWindow(Bytes bytes) {
  const Place free = free_.First(bytes);
  return free == kNoPlace ? FindEvictable(bytes) : Window{free, free};
}

// First what is never used again, of that first what was used first, so that the move may begin
// early; then what is used last.
Planner::Window Planner::FindEvictable(Bytes bytes) {
  if (runs_.size() < segments_.places()) runs_.resize(segments_.places());
  ++search_;
  Window run;
  const auto suffices = [&](UnitIndex unit) { return Extend(At(unit).place, bytes, &run); };
  while (unused_begin_ < unused_.size() && At(unused_[unused_begin_]).place == kNoPlace)
    ++unused_begin_;
  for (size_t i = unused_begin_; i < unused_.size(); ++i) {
    if (At(unused_[i]).place != kNoPlace && suffices(unused_[i]))
      return Narrow(run, At(unused_[i]).place, bytes);
  }
  for (size_t p = by_last_use_.AtOrAfter(0); p != PositionSet::kNone;
       p = by_last_use_.AtOrAfter(p + 1)) {
    if (suffices(UnitAt(p))) return Narrow(run, At(UnitAt(p)).place, bytes);
  }
  for (size_t p = by_next_use_.Before(positions_); p != PositionSet::kNone;
       p = by_next_use_.Before(p)) {
    if (suffices(UnitAt(p))) return Narrow(run, At(UnitAt(p)).place, bytes);
  }
  return {};
}

// Adds the segment at `place`, and the free ones beside it, to the runs that may go. Returns
// whether the one that it is in then has the room.
bool Planner::Extend(Place place, Bytes bytes, Window* run) {
  Bytes room = segments_.at(place).size;
  // Goes on to whatever borders on the run in one direction.
  const auto reach = [&](Place end, Place SegmentList::Segment::*beyond) {
    for (Place p = segments_.at(end).*beyond; p != kNoPlace; p = segments_.at(end).*beyond) {
      const bool joins = runs_[p].search == search_;
      if (!joins && segments_.at(p).kind != Kind::kFree) break;
      room += joins ? runs_[p].room : segments_.at(p).size;
      end = joins ? runs_[p].other_end : p;
    }
    return end;
  };
  *run = {reach(place, &SegmentList::Segment::before), reach(place, &SegmentList::Segment::after)};
  runs_[run->first] = {search_, run->last, room};
  runs_[run->last] = {search_, run->first, room};
  return room >= bytes;
}

// The best window in a run that suffices since `last_added` is in it, so that each window that
// suffices has it and none is better for its next use: what can begin earliest, then what evicts
// least, then the first.
Planner::Window Planner::Narrow(Window run, Place last_added, Bytes bytes) {
  const auto free_from = [this](Place p) {
    return segments_.at(p).kind == Kind::kUnit ? At(segments_.at(p).unit).free_from : 0;
  };
  const auto evicted = [this](Place p) {
    return segments_.at(p).kind == Kind::kUnit ? segments_.at(p).size : Bytes(0);
  };
  // What each start costs, as far as `last_added`.
  narrowed_.clear();
  free_before_.clear();
  Bytes room, evicts;
  size_t latest = 0;
  for (Place p = last_added;; p = segments_.at(p).before) {
    narrowed_.push_back(p);
    latest = std::max(latest, free_from(p));
    free_before_.push_back(latest);
    room += segments_.at(p).size;
    evicts += evicted(p);
    if (p == run.first) break;
  }
  Window best;
  size_t best_free = 0;
  Bytes best_evicts;
  Place last = last_added;
  size_t latest_after = 0;
  for (size_t i = narrowed_.size(); i-- > 0;) {
    while (room < bytes && last != run.last) {
      last = segments_.at(last).after;
      room += segments_.at(last).size;
      evicts += evicted(last);
      latest_after = std::max(latest_after, free_from(last));
    }
    if (room < bytes) break;
    const size_t free = std::max(free_before_[i], latest_after);
    if (best.first == kNoPlace || free < best_free || (free == best_free && evicts < best_evicts)) {
      best = {narrowed_[i], last};
      best_free = free;
      best_evicts = evicts;
    }
    room -= segments_.at(narrowed_[i]).size;
    evicts -= evicted(narrowed_[i]);
  }
  return best;
}

}  // namespace sluice
