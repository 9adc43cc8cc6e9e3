#include "offload/run/residency.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/planted_bug.h"

namespace sluice {

namespace {
// An acquisition blocked for so long, while nothing moves, makes room elsewhere than planned.
constexpr Nanos kPlanAround = std::chrono::milliseconds(50);

constexpr SegmentList::Place kNoPlace = SegmentList::kNone;
using Kind = SegmentList::Kind;

// By unit; 0 for those that live in HBM.
std::vector<Bytes> CachedBytes(const Placement& placement) {
  std::vector<Bytes> bytes = placement.slot_bytes;
  for (size_t u = 0; u < bytes.size(); ++u) {
    if (placement.resident(u)) bytes[u] = Bytes(0);
  }
  return bytes;
}
}  // namespace

Residency::Residency(const Context& context, std::shared_ptr<Arena> hbm, Nanos stuck_after)
    : context_(context),
      views_(
          std::move(hbm), context.device, context.inbox, [this] { OnFreed(); }, context.fail,
          context.heeds_calls),
      fetcher_(context, this),
      units_(context.layout->units().size()),
      segments_(context.placement->hbm_cache),
      planner_(CachedBytes(*context.placement)),
      stuck_after_(stuck_after),
      acquires_(context.metrics->Get("acquires")),
      demand_misses_(context.metrics->Get("demand_misses")),
      evictions_(context.metrics->Get("evictions")),
      departures_(context.metrics->Get("trace_departures")),
      stall_update_ns_(context.metrics->Get("stall_update_ns")),
      stall_fetch_ns_(context.metrics->Get("stall_fetch_ns")),
      acquire_ns_(context.metrics->GetTimes("acquire_ns")) {
  for (size_t u = 0; u < units_.size(); ++u) {
    units_[u].fixed = context.placement->resident(u);
    if (units_[u].fixed) {
      units_[u].state = State::kReady;
      // A lent unit is acquired to wait for its update. It has no view: any address will do.
      units_[u].address = context.layout->units()[u].lent ? reinterpret_cast<std::byte*>(&units_[u])
                                                          : context.memory->param_home[u];
    }
  }
}

Residency::~Residency() = default;

std::byte* Residency::AddressOf(SegmentList::Place place) const {
  return context_.memory->hbm_cache.data() + segments_.at(place).offset.value();
}

void Residency::BeginIteration(uint32_t key, bool boundary) {
  planner_.Clear();  // the book drops traces
  book_.Begin(key);
  boundary_ = boundary;
  BuildPlan(false);
  Pump();
}

void Residency::EndIteration() {
  planner_.Clear();
  book_.End();
  if (boundary_) return;  // a step follows, after which all copies are stale
  BuildPlan(false);
  Pump();
}

std::span<const UnitIndex> Residency::UnitOrder() const {
  const IndexedTrace* latest = book_.Latest(book_.key());
  return latest == nullptr ? std::span<const UnitIndex>() : latest->acquisitions();
}

void Residency::Suspend() {
  if (!suspended_) {
    suspended_ = true;
    for (Unit& u : units_) SetDoor(&u);
  }
  if (gathers_ != nullptr) gathers_->UnwantAll();
  views_.Settle();  // what has died meanwhile: moving() says whether its streams have passed
}

void Residency::Replan() {
  suspended_ = false;
  for (Unit& u : units_) SetDoor(&u);
  BuildPlan(false);
  Pump();
}

void Residency::Acquire(UnitIndex unit, CallerStream stream, Acquired done) {
  acquires_->Add();
  const bool expected = book_.OnAcquire(unit);
  departures_->Set(book_.departures());
  if (!failed_.ok() && !MayBeWritten(unit)) return done(failed_);
  Unit& u = units_[unit.value()];
  const TimePoint now = context_.clock->Now();
  if (waiting_ == 0) last_progress_ = now;
  if (u.state == State::kAbsent && !u.pending) demand_misses_->Add();
  if (u.waits.empty()) waiting_units_.push_back(unit);
  u.waits.push_back(
      {.done = std::move(done), .stream = stream, .since = now, .was_pending = u.pending});
  ++waiting_;
  Serve(unit);
  if (!expected && (book_.known() || !u.waits.empty())) {
    BuildPlan(false);
  } else if (u.state == State::kAbsent) {
    const Move* const next = planner_.Next();
    if (next == nullptr || next->unit != unit || !next->possible) unplanned_ = true;
  }
  Pump();
}

void Residency::SetDoor(Unit* unit) {
  const bool open = unit->state == State::kReady && unit->loaded && !unit->pending &&
                    unit->waits.empty() && !suspended_ && failed_.ok();
  if (open) {
    unit->door.Open();
  } else {
    unit->door.Close();
  }
}

bool Residency::Enter(UnitIndex unit, CallerStream stream) {
  Unit& u = units_[unit.value()];
  if (!u.door.Enter()) return false;
  absl::Cleanup leave = [&u] { u.door.Leave(); };
  const UnitLayout& layout = context_.layout->unit(unit);
  views_.Show(unit, u.address, layout.elements, layout.types.param, stream);
  std::move(leave).Cancel();
  acquires_->Add();
  acquire_ns_->Add(0);
  return true;
}

void Residency::Entered(UnitIndex unit) {
  const bool expected = book_.OnAcquire(unit);
  departures_->Set(book_.departures());
  Unit& u = units_[unit.value()];
  ++u.acquired;
  u.door.Announced();
  if (!expected && book_.known()) BuildPlan(false);
  Pump();
}

void Residency::SetLoaded(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  u.loaded = true;
  SetDoor(&u);
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
  if (u.pending) return;
  const TimePoint now = context_.clock->Now();
  while (!u.waits.empty() && IsThereFor(u, u.waits.front().stream)) {
    Wait wait = std::move(u.waits.front());
    u.waits.pop_front();
    --waiting_;
    (wait.was_pending ? stall_update_ns_ : stall_fetch_ns_)->Add((now - wait.since).count());
    acquire_ns_->Add((now - wait.since).count());
    ++u.acquired;
    const UnitLayout& layout = context_.layout->unit(unit);
    views_.Show(unit, u.address, layout.elements, layout.types.param, wait.stream);
    wait.done(absl::OkStatus());
    if (u.waits.empty()) std::erase(waiting_units_, unit);
  }
  SetDoor(&u);
}

// Where the stream can't be told to wait, because it is being captured or because the device
// refuses, the unit is there when its copies have ended.
bool Residency::IsThereFor(const Unit& unit, CallerStream stream) const {
  if (unit.state != State::kFilling || !unit.arrival.recorded()) return unit.state == State::kReady;
  return Planted(context_, PlantedBug::kUsedBeforeItCame) ||
         context_.device->OrderCallerAfter(stream, unit.arrival).ok();
}

void Residency::SetGathers(UnitGathers* gathers) {
  gathers_ = gathers;
  gathers_->SetObserver(this);
}

void Residency::OnEnqueued(UnitIndex unit) {
  if (IsShared(unit) || !context_.device->orders_callers()) return;
  absl::StatusOr<Fence> arrival = context_.device->RecordEnd(StreamKind::kFetch);
  if (!arrival.ok()) return;
  units_[unit.value()].arrival = *std::move(arrival);
  Serve(unit);
}

void Residency::OnFetched(UnitIndex unit, const absl::Status& status) {
  if (!status.ok()) return context_.fail(status);
  IsShared(unit) ? gathers_->PartThere(unit, status) : OnThere(unit);
}

void Residency::OnGathered(UnitIndex unit, const absl::Status& status) {
  if (status.ok()) return OnThere(unit);
  Vacate(unit);
  unplanned_ = unplanned_ || !units_[unit.value()].waits.empty();
  Pump();
}

void Residency::OnThere(UnitIndex unit) {
  units_[unit.value()].state = State::kReady;
  units_[unit.value()].arrival = Fence();
  last_progress_ = context_.clock->Now();
  plan_dirty_ = true;
  Serve(unit);
  Pump();
}

absl::Status Residency::BeginUpdate(UnitIndex unit) {
  Unit& u = units_[unit.value()];
  if (acquired(unit)) {
    return absl::FailedPreconditionError(
        fmt::format("unit '{}' is acquired: release it before its values change",
                    context_.layout->unit(unit).name));
  }
  u.pending = true;
  SetDoor(&u);
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
  const SegmentList::Place place = std::exchange(u.place, kNoPlace);
  if (views_.InUse(u.address)) {
    segments_.Leave(place);
    leftovers_.push_back(place);
  } else {
    segments_.Free(place);
  }
  plan_dirty_ = true;
}

void Residency::OnFreed() {
  std::erase_if(leftovers_, [this](SegmentList::Place place) {
    if (views_.InUse(AddressOf(place))) return false;
    segments_.Free(place);
    return true;
  });
  last_progress_ = context_.clock->Now();
  plan_dirty_ = true;
  Pump();
}

void Residency::Fail(const absl::Status& status) {
  if (failed_.ok()) failed_ = status;
  for (Unit& u : units_) SetDoor(&u);
  for (uint32_t u = 0; u < units_.size(); ++u) {
    if (!MayBeWritten(UnitIndex(u))) EndWaits(UnitIndex(u), failed_);
  }
}

void Residency::EndedWriting() {
  for (uint32_t u = 0; u < units_.size(); ++u) EndWaits(UnitIndex(u), failed_);
}

bool Residency::MayBeWritten(UnitIndex unit) const {
  return context_.layout->unit(unit).lent && units_[unit.value()].pending;
}

void Residency::EndWaits(UnitIndex index, const absl::Status& status) {
  Unit* const unit = &units_[index.value()];
  if (!unit->waits.empty()) std::erase(waiting_units_, index);
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
  if (waiting_ == 0 || suspended_ || transferring() || now - last_progress_ < kPlanAround) return;
  // What waits for an update needs no room, and what waits for other ranks has it.
  const bool for_room = std::ranges::any_of(waiting_units_, [this](UnitIndex unit) {
    return !units_[unit.value()].pending && units_[unit.value()].state == State::kAbsent;
  });
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
    if (u.waits.empty() || u.pending || u.state != State::kAbsent) continue;
    std::string held;
    for (SegmentList::Place p = segments_.first(); p != kNoPlace; p = segments_.at(p).after) {
      if (MayEvict(p)) continue;
      held += segments_.Is(p, Kind::kUnit)
                  ? fmt::format(" '{}'", context_.layout->unit(segments_.at(p).unit).name)
                  : " (views of a released unit)";
    }
    const std::string unit = context_.layout->units()[i].name;
    const std::string needs = FormatBytesUp(planner_.unit_bytes(UnitIndex(i)));
    const absl::Status status = absl::ResourceExhaustedError(
        fmt::format("no room in HBM for unit '{}' ({}) in a cache of {}: held are{}; raise the hbm "
                    "budget, make units smaller, or release or delete what is held",
                    unit, needs, FormatBytesDown(context_.placement->hbm_cache), held));
    EndWaits(UnitIndex(i), status);
  }
}

}  // namespace sluice
