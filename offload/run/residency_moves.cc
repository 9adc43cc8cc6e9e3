// What Residency plans, and how it carries that out.

#include <algorithm>
#include <utility>

#include "offload/run/planted_bug.h"
#include "offload/run/residency.h"

namespace sluice {

namespace {
constexpr SegmentList::Place kNoPlace = SegmentList::kNone;
using Kind = SegmentList::Kind;
}  // namespace

// The trace from here on: the rest of the one followed, or, between iterations, the one expected
// next.
const IndexedTrace* Residency::Upcoming() const {
  return book_.open() ? book_.followed() : book_.Latest(book_.Successor(book_.key()));
}

void Residency::BuildPlan(bool viewed_is_held) {
  plan_waiting_.clear();
  for (const UnitIndex unit : waiting_units_) {
    if (units_[unit.value()].state == State::kAbsent) plan_waiting_.push_back(unit);
  }
  plan_position_ = book_.position();
  const IndexedTrace* const upcoming = Upcoming();
  const bool goes_on = upcoming != nullptr && book_.open() && !boundary_;
  planner_.Begin({.waiting = plan_waiting_,
                  .trace = upcoming,
                  .happened = book_.open() ? book_.position() : 0,
                  .next = goes_on ? book_.Latest(book_.Successor(book_.key())) : nullptr},
                 segments_, [&](UnitIndex unit) {
                   const Unit& u = units_[unit.value()];
                   return u.acquired > 0 || !u.waits.empty() ||
                          (viewed_is_held && views_.InUse(u.address));
                 });
  unplanned_ = false;
  plan_dirty_ = false;
}

void Residency::Pump() {
  if (suspended_ || !failed_.ok()) return;
  for (;;) {
    while (const Move* const move = planner_.Next()) {
      if (!move->possible) {
        unplanned_ = unplanned_ || !units_[move->unit.value()].waits.empty();
      } else if (!TryMove(*move)) {
        break;
      }
      planner_.Pop();
    }
    if (!std::exchange(misfit_, false) && (!plan_dirty_ || !UnplannedWait())) return;
    BuildPlan(false);
  }
}

// Whether somebody waits for a unit that no coming move brings.
bool Residency::UnplannedWait() const {
  return unplanned_ && std::ranges::any_of(waiting_units_, [this](UnitIndex unit) {
           const Unit& u = units_[unit.value()];
           return !u.pending && u.state == State::kAbsent;
         });
}

bool Residency::MayEvict(SegmentList::Place place) const {
  const SegmentList::Segment& segment = segments_.at(place);
  if (segment.kind != Kind::kUnit) return segment.kind == Kind::kFree;
  const Unit& u = units_[segment.unit.value()];
  return u.acquired == 0 && u.waits.empty() && u.state == State::kReady &&
         (!views_.Viewed(u.address) || Planted(context_, PlantedBug::kEvictViewed));
}

// The place is wanted for what a caller waits for: a unit that waits there for other ranks gives it
// up.
void Residency::Reclaim(SegmentList::Place place) {
  if (!segments_.Is(place, Kind::kUnit)) return;
  const UnitIndex unit = segments_.at(place).unit;
  if (IsShared(unit) && units_[unit.value()].waits.empty()) gathers_->Unwant(unit);
}

// Whether nobody is inside any unit from `first` to `last`: then nobody enters any more. Else
// whoever is there will be announced.
bool Residency::CloseDoors(SegmentList::Place first, SegmentList::Place last) {
  const SegmentList::Place end = segments_.at(last).after;
  bool closed = true;
  for (SegmentList::Place p = first; p != end; p = segments_.at(p).after) {
    if (segments_.Is(p, Kind::kUnit))
      closed = units_[segments_.at(p).unit.value()].door.Close() && closed;
  }
  for (SegmentList::Place p = first; !closed && p != end; p = segments_.at(p).after) {
    if (segments_.Is(p, Kind::kUnit)) SetDoor(&units_[segments_.at(p).unit.value()]);
  }
  return closed;
}

// Begins `move` if it may begin. Returns whether it is done with: begun, or not needed any more.
bool Residency::TryMove(const Move& move) {
  Unit& u = units_[move.unit.value()];
  if (u.state != State::kAbsent) return true;
  if (u.pending) return false;
  if (!context_.overlap && u.waits.empty()) return false;
  if (IsShared(move.unit) && gathers_->serving(move.unit)) return false;
  const size_t waits = plan_waiting_.size();
  if (move.not_before > waits && book_.position() - plan_position_ < move.not_before - waits)
    return false;

  const Bytes bytes = planner_.unit_bytes(move.unit);
  if (!segments_.Begins(move.place, move.offset)) {
    misfit_ = true;  // what lies there has changed since
    return false;
  }
  SegmentList::Place last = move.place;
  Bytes room;
  for (SegmentList::Place p = move.place; room < bytes; p = segments_.at(p).after) {
    if (p == kNoPlace) {
      misfit_ = true;
      return false;
    }
    if (!MayEvict(p)) {
      if (!u.waits.empty()) Reclaim(p);
      return false;
    }
    room += segments_.at(p).size;
    last = p;
  }
  if (!CloseDoors(move.place, last)) return false;
  for (SegmentList::Place p = move.place;; p = segments_.at(p).after) {
    if (segments_.Is(p, Kind::kUnit)) {
      Unit& evicted = units_[segments_.at(p).unit.value()];
      if (!Planted(context_, PlantedBug::kCopiedOverReaders))
        views_.OrderAfterUsers(evicted.address, StreamKind::kFetch);
      evicted.state = State::kAbsent;
      evicted.place = kNoPlace;
      evictions_->Add();
    }
    if (p == last) break;
  }
  u.place = segments_.Put(move.place, last, move.unit, bytes);
  u.address = AddressOf(u.place);
  u.state = State::kFilling;
  last_progress_ = context_.clock->Now();
  Bring(move.unit);
  return true;
}

// From its home; of what ranks share, this rank's shard, if it has to be brought, and, once nobody
// uses the slot any more, all of it.
void Residency::Bring(UnitIndex unit) {
  std::byte* const slot = units_[unit.value()].address;
  if (IsShared(unit)) gathers_->Want(unit, slot);
  if (!IsShared(unit) || !gathers_->at_once(unit)) fetcher_.Fetch(unit, slot);
}

}  // namespace sluice
