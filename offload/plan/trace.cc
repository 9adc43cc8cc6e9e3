#include "offload/plan/trace.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

namespace {
// An unexpected unit that was due so soon: what lies between was left out, rather than this extra.
constexpr size_t kSoon = 8;
}  // namespace

IndexedTrace::IndexedTrace(Trace steps) : steps_(std::move(steps)) { Index(); }

void IndexedTrace::Assign(const Trace& steps) {
  if (steps == steps_) return;
  steps_ = steps;
  Index();
}

void IndexedTrace::Index() {
  acquisitions_.clear();
  step_of_.clear();
  uint32_t units = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (!steps_[i].acquire) continue;
    acquisitions_.push_back(steps_[i].unit);
    step_of_.push_back(i);
    units = std::max(units, steps_[i].unit.value() + 1);
  }
  first_use_.assign(units + 1, 0);
  for (const UnitIndex unit : acquisitions_) ++first_use_[unit.value() + 1];
  for (size_t u = 1; u < first_use_.size(); ++u) first_use_[u] += first_use_[u - 1];
  uses_.resize(acquisitions_.size());
  for (size_t i = 0; i < acquisitions_.size(); ++i) {
    uses_[first_use_[acquisitions_[i].value()]++] = i;
  }
  // Each place has moved to where the next unit's uses begin.
  std::rotate(first_use_.begin(), first_use_.end() - 1, first_use_.end());
  first_use_.front() = 0;
}

std::span<const size_t> IndexedTrace::Uses(UnitIndex unit) const {
  if (unit.value() + 1 >= first_use_.size()) return {};
  const size_t first = first_use_[unit.value()];
  return std::span(uses_).subspan(first, first_use_[unit.value() + 1] - first);
}

size_t IndexedTrace::NextUse(UnitIndex unit, size_t from) const {
  const std::span<const size_t> uses = Uses(unit);
  const auto use = std::ranges::lower_bound(uses, from);
  return use == uses.end() ? kNever : *use;
}

void TraceBook::Begin(uint32_t key) {
  SLUICE_CHECK(key < kKeys);
  End();
  if (any_) successor_[key_] = key;
  if (!seen_[key]) successor_[key] = key, seen_[key] = true;
  any_ = true;
  open_ = true;
  key_ = key;
  recorded_.clear();
  recorded_acquisitions_.clear();
  position_ = 0;
  places_.assign(1, 0);
  for (const auto& known : known_[key]) known->so_far = true;
  followed_ = Latest(key);
}

void TraceBook::End() {
  if (!open_) return;
  open_ = false;
  followed_ = nullptr;
  if (recorded_acquisitions_.empty()) return;
  auto& known = known_[key_];
  const auto same = std::find_if(known.begin(), known.end(), [&](const auto& k) {
    return k->trace.acquisitions() == recorded_acquisitions_;
  });
  if (same != known.end()) {
    (*same)->trace.Assign(recorded_);
    std::rotate(known.begin(), same, same + 1);
    return;
  }
  if (known.size() == kTracesPerKey) known.pop_back();
  known.insert(known.begin(), std::make_unique<Known>(recorded_));
}

bool TraceBook::OnAcquire(UnitIndex unit) {
  if (!open_) return false;
  const size_t happened = recorded_acquisitions_.size();
  recorded_.push_back({unit, true});
  recorded_acquisitions_.push_back(unit);
  for (const auto& known : known_[key_]) {
    const std::vector<UnitIndex>& units = known->trace.acquisitions();
    known->so_far = known->so_far && happened < units.size() && units[happened] == unit;
  }
  if (followed_ == nullptr) return false;
  const std::vector<UnitIndex>& expected = followed_->acquisitions();
  const bool was_expected = position_ < expected.size() && expected[position_] == unit;
  if (!was_expected) ++departures_;
  if (was_expected || !FollowOther()) Resynchronise(unit);
  position_ = places_.front();
  return was_expected;
}

bool TraceBook::FollowOther() {
  for (const auto& other : known_[key_]) {
    if (!other->so_far) continue;
    followed_ = &other->trace;
    places_.assign(1, recorded_acquisitions_.size());
    return true;
  }
  return false;
}

// The places at which `unit` was due are one on; the others are not where the program is.
void TraceBook::Resynchronise(UnitIndex unit) {
  const std::vector<UnitIndex>& expected = followed_->acquisitions();
  const auto due = [&](size_t place) { return place < expected.size() && expected[place] == unit; };
  if (std::ranges::none_of(places_, due)) return AddPlaces(unit);
  std::erase_if(places_, [&](size_t place) { return !due(place); });
  for (size_t& place : places_) ++place;
}

// None of the places explains `unit`: each where the program may be now, the likeliest first. That
// is behind the unit's next use if that was due soon; else `unit` was extra.
void TraceBook::AddPlaces(UnitIndex unit) {
  const size_t here = position_;
  const size_t end = here + kWindow;
  const size_t begin = here - std::min(here, kWindow);
  const std::span<const size_t> uses = followed_->Uses(unit);
  const auto next = std::ranges::lower_bound(uses, here);
  places_.clear();
  const auto add = [this](size_t place) {
    if (std::ranges::find(places_, place) == places_.end()) places_.push_back(place);
  };
  if (next != uses.end() && *next < here + kSoon) add(*next + 1);
  add(here);
  for (auto use = next; use != uses.end() && *use < end && places_.size() + 1 < kPlacesMax / 2;
       ++use) {
    add(*use + 1);
  }
  for (auto use = next;
       use != uses.begin() && *(use - 1) >= begin && places_.size() + 1 < kPlacesMax; --use) {
    add(*(use - 1) + 1);
  }
  if (here < followed_->acquisitions().size()) add(here + 1);
}

void TraceBook::OnRelease(UnitIndex unit) {
  if (open_) recorded_.push_back({unit, false});
}

const IndexedTrace* TraceBook::Latest(uint32_t key) const {
  SLUICE_CHECK(key < kKeys);
  return known_[key].empty() ? nullptr : &known_[key].front()->trace;
}

}  // namespace sluice
