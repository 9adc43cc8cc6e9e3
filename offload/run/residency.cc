#include "offload/run/residency.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/planted_bug.h"

namespace sluice {

namespace {
// An acquisition blocked for so long, while nothing moves, makes room elsewhere than planned.
constexpr Nanos kPlanAround = std::chrono::milliseconds(50);
}  // namespace

Residency::Residency(const Context& context, std::shared_ptr<Arena> hbm, Nanos stuck_after)
    : context_(context),
      views_(
          std::move(hbm), context.device, context.inbox, [this] { OnFreed(); }, context.fail),
      fetcher_(context, this),
      units_(context.layout->units().size()),
      stuck_after_(stuck_after),
      acquires_(context.metrics->Get("acquires")),
      demand_misses_(context.metrics->Get("demand_misses")),
      evictions_(context.metrics->Get("evictions")),
      departures_(context.metrics->Get("trace_departures")),
      stall_update_ns_(context.metrics->Get("stall_update_ns")),
      stall_fetch_ns_(context.metrics->Get("stall_fetch_ns")) {
  for (size_t u = 0; u < units_.size(); ++u) {
    units_[u].fixed = context.placement->param_home[u] == Tier::kHbm;
    unit_bytes_.push_back(units_[u].fixed ? Bytes(0) : context.placement->slot_bytes[u]);
    if (units_[u].fixed) {
      units_[u].state = State::kReady;
      // A lent unit is acquired to wait for its update. It has no view: any address will do.
      units_[u].address = context.layout->units()[u].lent ? context.memory->grads[u]
                                                          : context.memory->param_home[u];
    }
  }
  if (context.placement->hbm_cache > Bytes(0)) {
    segments_.push_back({.unit = std::nullopt,
                         .offset = Bytes(0),
                         .size = context.placement->hbm_cache,
                         .held = false});
  }
}

Residency::~Residency() = default;

std::byte* Residency::AddressOf(const Segment& segment) const {
  return context_.memory->hbm_cache.data() + segment.offset.value();
}

void Residency::BeginIteration(uint32_t key, bool boundary) {
  book_.Begin(key);
  boundary_ = boundary;
  BuildPlan(false);
  Pump();
}

void Residency::EndIteration() {
  book_.End();
  schedule_ = {};
  next_move_ = 0;
  if (boundary_) return;  // a step follows, after which all copies are stale
  BuildPlan(false);
  Pump();
}

std::vector<UnitIndex> Residency::UnitOrder() const {
  const IndexedTrace* latest = book_.Latest(book_.key());
  return latest == nullptr ? std::vector<UnitIndex>() : latest->acquisitions();
}

void Residency::Replan() {
  suspended_ = false;
  BuildPlan(false);
  Pump();
}

void Residency::Acquire(UnitIndex unit, CallerStream stream, Acquired done) {
  acquires_->Add();
  const bool expected = book_.OnAcquire(unit);
  departures_->Set(book_.departures());
  if (!failed_.ok() && !MayBeWritten(unit)) return done(failed_);
  Unit& u = units_[unit.value()];
  const bool available = u.state == State::kReady && !u.pending && u.waits.empty();
  const TimePoint now = context_.clock->Now();
  if (waiting_ == 0) last_progress_ = now;
  if (!available && u.state == State::kAbsent && !u.pending) demand_misses_->Add();
  u.waits.push_back(
      {.done = std::move(done), .stream = stream, .since = now, .was_pending = u.pending});
  ++waiting_;
  if (available) Serve(unit);
  if (!expected && (book_.known() || !available)) BuildPlan(false);
  Pump();
}

absl::Status Residency::Release(UnitIndex unit, Fences fences) {
  Unit& u = units_[unit.value()];
  if (u.acquired == 0) {
    return absl::FailedPreconditionError(fmt::format("unit '{}' was released but is not acquired",
                                                     context_.layout->unit(unit).name));
  }
  book_.OnRelease(unit);
  views_.HoldUntil(u.address, std::move(fences));
  if (--u.acquired == 0) views_.Hide(unit);
  plan_dirty_ = true;
  last_progress_ = context_.clock->Now();
  Pump();
  return absl::OkStatus();
}

void Residency::Serve(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  if (u.state != State::kReady || u.pending) return;
  const TimePoint now = context_.clock->Now();
  while (!u.waits.empty()) {
    Wait wait = std::move(u.waits.front());
    u.waits.pop_front();
    --waiting_;
    (wait.was_pending ? stall_update_ns_ : stall_fetch_ns_)->Add((now - wait.since).count());
    ++u.acquired;
    const UnitLayout& layout = context_.layout->unit(unit);
    views_.Show(unit, u.address, layout.elements, layout.types.param, wait.stream);
    wait.done(absl::OkStatus());
  }
}

void Residency::OnFetched(UnitIndex unit, const absl::Status& status) {
  if (!status.ok()) return context_.fail(status);
  units_[unit.value()].state = State::kReady;
  last_progress_ = context_.clock->Now();
  plan_dirty_ = true;
  Serve(unit);
  Pump();
}

absl::Status Residency::BeginUpdate(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  if (u.acquired > 0) {
    return absl::FailedPreconditionError(
        fmt::format("unit '{}' is acquired: release it before its values change",
                    context_.layout->unit(unit).name));
  }
  u.pending = true;
  const bool stale = Planted(context_, PlantedBug::kStaleGeneration);
  if (!u.fixed && u.state == State::kReady && !stale) Vacate(unit);
  return absl::OkStatus();
}

void Residency::EndUpdate(UnitIndex unit) {
  units_[unit.value()].pending = false;
  last_progress_ = context_.clock->Now();
  Serve(unit);
  Pump();
}

// The unit leaves its slot, which becomes free, or a leftover while it is in use.
void Residency::Vacate(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  u.state = State::kAbsent;
  for (Segment& s : segments_) {
    if (s.unit != unit) continue;
    s.unit.reset();
    s.held = views_.InUse(u.address);
  }
  MergeFree(&segments_);
  plan_dirty_ = true;
}

void Residency::OnFreed() {
  for (Segment& s : segments_) {
    if (s.held && !s.unit && !views_.InUse(AddressOf(s))) s.held = false;
  }
  MergeFree(&segments_);
  last_progress_ = context_.clock->Now();
  plan_dirty_ = true;
  Pump();
}

// The trace from here on: the rest of the one followed, or, between iterations, the one expected
// next.
const IndexedTrace* Residency::Upcoming() const {
  return book_.open() ? book_.followed() : book_.Latest(book_.Successor(book_.key()));
}

void Residency::BuildPlan(bool viewed_is_held) {
  Trace trace;
  for (uint32_t u = 0; u < units_.size(); ++u) {
    if (!units_[u].waits.empty() && units_[u].state == State::kAbsent)
      trace.push_back({UnitIndex(u), true});
  }
  plan_waits_ = trace.size();
  plan_position_ = book_.position();
  const auto append = [&trace](const IndexedTrace& next, size_t from) {
    const auto begin = next.steps().begin() + static_cast<ptrdiff_t>(next.StepAfter(from));
    trace.insert(trace.end(), begin, next.steps().end());
  };
  if (const IndexedTrace* upcoming = Upcoming(); upcoming != nullptr) {
    append(*upcoming, book_.open() ? book_.position() : 0);
    const IndexedTrace* next =
        book_.open() && !boundary_ ? book_.Latest(book_.Successor(book_.key())) : nullptr;
    if (next != nullptr) append(*next, 0);
  }
  std::vector<Segment> segments = segments_;
  for (Segment& s : segments) {
    if (!s.unit) continue;
    const Unit& u = units_[s.unit->value()];
    s.held = u.acquired > 0 || !u.waits.empty() || (viewed_is_held && views_.InUse(u.address));
  }
  schedule_ =
      MakeSchedule({.trace = &trace, .first = 0, .unit_bytes = unit_bytes_, .segments = segments});
  next_move_ = 0;
  plan_dirty_ = false;
}

void Residency::Pump() {
  if (suspended_ || !failed_.ok()) return;
  for (;;) {
    while (next_move_ < schedule_.moves.size() && TryMove(schedule_.moves[next_move_]))
      ++next_move_;
    if (!std::exchange(misfit_, false) && (!plan_dirty_ || !UnplannedWait())) return;
    BuildPlan(false);
  }
}

// Whether somebody waits for a unit that no coming move brings.
bool Residency::UnplannedWait() const {
  if (waiting_ == 0) return false;
  for (uint32_t i = 0; i < units_.size(); ++i) {
    const Unit& u = units_[i];
    if (u.waits.empty() || u.pending || u.state != State::kAbsent) continue;
    const bool planned =
        std::any_of(schedule_.moves.begin() + static_cast<ptrdiff_t>(next_move_),
                    schedule_.moves.end(), [i](const Move& m) { return m.unit == UnitIndex(i); });
    if (!planned) return true;
  }
  return false;
}

bool Residency::MayEvict(const Segment& segment) const {
  if (!segment.unit) return !segment.held;
  const Unit& u = units_[segment.unit->value()];
  return u.acquired == 0 && u.waits.empty() && u.state == State::kReady &&
         (!views_.InUse(u.address) || Planted(context_, PlantedBug::kEvictViewed));
}

// Begins `move` if it may begin. Returns whether it is done with: begun, or not needed any more.
bool Residency::TryMove(const Move& move) {
  Unit& u = units_[move.unit.value()];
  if (u.state != State::kAbsent) return true;
  if (u.pending) return false;
  if (!context_.overlap && u.waits.empty()) return false;
  if (move.not_before > plan_waits_ &&
      book_.position() - plan_position_ < move.not_before - plan_waits_)
    return false;

  const Bytes bytes = unit_bytes_[move.unit.value()];
  const auto first = std::find_if(segments_.begin(), segments_.end(),
                                  [&](const Segment& s) { return s.offset == move.offset; });
  if (first == segments_.end()) {
    misfit_ = true;  // what lies there has changed since
    return false;
  }
  auto last = first;
  Bytes room;
  while (last != segments_.end() && room < bytes) {
    if (!MayEvict(*last)) return false;
    room += last->size;
    ++last;
  }
  if (room < bytes) {
    misfit_ = true;
    return false;
  }
  for (auto it = first; it != last; ++it) {
    if (!it->unit) continue;
    units_[it->unit->value()].state = State::kAbsent;
    evictions_->Add();
  }
  u.address = AddressOf(*first);
  u.state = State::kFilling;
  last_progress_ = context_.clock->Now();
  Place(&segments_,
        {static_cast<size_t>(first - segments_.begin()),
         static_cast<size_t>(last - segments_.begin())},
        move.unit, bytes);
  fetcher_.Fetch(move.unit, u.address);
  return true;
}

void Residency::Fail(const absl::Status& status) {
  if (failed_.ok()) failed_ = status;
  for (uint32_t u = 0; u < units_.size(); ++u) {
    if (!MayBeWritten(UnitIndex(u))) EndWaits(&units_[u], failed_);
  }
}

void Residency::EndedWriting() {
  for (Unit& unit : units_) EndWaits(&unit, failed_);
}

bool Residency::MayBeWritten(UnitIndex unit) const {
  return context_.layout->unit(unit).lent && units_[unit.value()].pending;
}

void Residency::EndWaits(Unit* unit, const absl::Status& status) {
  while (!unit->waits.empty()) {
    Wait wait = std::move(unit->waits.front());
    unit->waits.pop_front();
    --waiting_;
    wait.done(status);
  }
}

void Residency::CheckStuck(TimePoint now) {
  views_.Settle();
  // The caller's streams are busy: room comes when they have passed their fences.
  if (views_.fenced()) last_progress_ = now;
  if (waiting_ == 0 || suspended_ || moving() || now - last_progress_ < kPlanAround) return;
  // What waits for an update needs no room.
  const bool for_room = std::any_of(units_.begin(), units_.end(),
                                    [](const Unit& u) { return !u.waits.empty() && !u.pending; });
  if (!for_room) return;
  if (now - last_progress_ < stuck_after_) {
    if (now - planned_around_ < kPlanAround) return;
    planned_around_ = now;
    BuildPlan(true);
    plan_dirty_ = false;
    return Pump();
  }
  for (uint32_t i = 0; i < units_.size(); ++i) {
    Unit& u = units_[i];
    if (u.waits.empty() || u.pending) continue;
    std::string held;
    for (const Segment& s : segments_) {
      if (MayEvict(s)) continue;
      held += fmt::format(" {}", s.unit ? "'" + context_.layout->unit(*s.unit).name + "'"
                                        : "(views of a released unit)");
    }
    const absl::Status status = absl::ResourceExhaustedError(
        fmt::format("no room in HBM for unit '{}' ({}) in a cache of {}: held are{}; raise the hbm "
                    "budget, make units smaller, or release or delete what is held",
                    context_.layout->units()[i].name, FormatBytesUp(unit_bytes_[i]),
                    FormatBytesDown(context_.placement->hbm_cache), held));
    EndWaits(&u, status);
  }
}

}  // namespace sluice
