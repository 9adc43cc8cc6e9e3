// offload/run/residency.h
//
// Which units are in HBM. Follows the trace: plans with a Planner, moves units in as early as
// their room is free, serves acquisitions, and keeps a slot untouched while it is acquired or used
// (views.h), whatever the plan says.
//
// A unit that lives in HBM for good is always in place; any other is absent, filling or ready in a
// slot of the cache. An update makes a unit pending: it leaves the cache, can't be fetched or
// acquired, and comes back when the update has ended. A slot that it leaves so while it is in use
// is a leftover: nobody's, but not free.
//
// Streams wait for each other, not the caller and not the control thread, where the device can do
// so:
// - A unit whose copies are all enqueued is acquired at once: the caller's stream waits for them.
//   Till they have ended the unit is filling, and stays.
// - The slot of a unit that was released, and of which no view is alive, is filled anew at once;
//   the device's stream of fetches waits for the streams that may still read what is there. It
//   carries nothing but fetches, and is told to wait before the first copy into the slot, so
//   whatever is copied over a part of it comes after the wait, and nobody else is held up.
//
// A unit that is ready, and that nothing is about to change, is taken by the caller's thread itself
// (Enter); the control thread hears of it in the order of the calls (Entered) and till then leaves
// the unit where it is.
//
// Threads: the control thread, except Enter, and what Views says of itself.

#ifndef SLUICE_OFFLOAD_RUN_RESIDENCY_H_
#define SLUICE_OFFLOAD_RUN_RESIDENCY_H_

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/ring_queue.h"
#include "offload/plan/cache_segments.h"
#include "offload/plan/schedule.h"
#include "offload/plan/trace.h"
#include "offload/run/context.h"
#include "offload/run/door.h"
#include "offload/run/fetcher.h"
#include "offload/run/unit_gathers.h"
#include "offload/run/views.h"

namespace sluice {

class Residency final : public Fetcher::Observer, public UnitGathers::Observer {
 public:
  using Acquired = std::function<void(const absl::Status&)>;

  // `hbm` stays alive until the last view of it is gone. Acquisitions that wait for `stuck_after`
  // while nothing moves fail.
  Residency(const Context& context, std::shared_ptr<Arena> hbm, Nanos stuck_after);
  ~Residency() override;

  // Where ranks share parameters (not owned). Before anything is acquired.
  void SetGathers(UnitGathers* gathers);

  void BeginIteration(uint32_t key, bool boundary);
  void EndIteration();

  // `done` is called when the unit is in HBM and up to date for what is put on `stream` from then
  // on, where what reads it runs; or with an error: ResourceExhausted if it can't be had because
  // everything is held. Acquisitions count, each to be released.
  void Acquire(UnitIndex unit, CallerStream stream, Acquired done);
  // Acquires the unit at once if it is there as it should be: any thread. Entered follows, before
  // its release. Returns false otherwise: Acquire it then. If it throws std::bad_alloc, it is not
  // acquired.
  bool Enter(UnitIndex unit, CallerStream stream);
  void Entered(UnitIndex unit);
  // The unit has values, so that it may be entered.
  void SetLoaded(UnitIndex unit);
  // Whether acquisitions and releases may make something begin, so that they should be heard of
  // soon.
  bool heeds_calls() { return waiting_ > 0 || suspended_ || planner_.Next() != nullptr; }
  // The unit's slot stays as it is until `fences` are complete. Errors: FailedPrecondition if the
  // unit is not acquired.
  absl::Status Release(UnitIndex unit, Fences fences);

  // A unit's values are going to change. First Suspend, so that nothing is fetched from its home;
  // when nothing is moving(), which also means that the caller's streams have passed every fence,
  // BeginUpdate for each; then Replan. Errors: FailedPrecondition if it is acquired.
  void Suspend();
  bool moving() const { return transferring() || (gathers_ != nullptr && gathers_->busy()); }
  // The same, but for what waits for other ranks to have a use for it too.
  bool transferring() const { return fetcher_.active() > 0 || views_.fenced() || views_.dying(); }
  bool dying() const { return views_.dying(); }  // views, whose streams can't be asked now
  absl::Status BeginUpdate(UnitIndex unit);
  void EndUpdate(UnitIndex unit);
  void Replan();

  // Ends waiting acquisitions with `status`, now and from now on; but those of a unit in the
  // caller's memory that an update may still write wait for EndedWriting.
  void Fail(const absl::Status& status);
  void EndedWriting();
  // Ends acquisitions that waited too long while nothing moved. Call now and then.
  void CheckStuck(TimePoint now);

  bool acquired(UnitIndex unit) const {
    const Unit& u = units_[unit.value()];
    return u.acquired > 0 || u.door.anyone_inside();
  }
  bool pending(UnitIndex unit) const { return units_[unit.value()].pending; }
  bool waiting() const { return waiting_ > 0; }
  UnitIndex first_waiting() const { return waiting_units_.front(); }  // while waiting()
  bool boundary() const { return boundary_; }
  // The units in the order in which the latest iteration first acquired them.
  std::span<const UnitIndex> UnitOrder() const;
  // What was acquired in the iteration that is under way; null if none is.
  const std::vector<UnitIndex>* Acquisitions() const { return book_.recorded(); }
  Views* views() { return &views_; }

  void OnEnqueued(UnitIndex unit) override;
  void OnFetched(UnitIndex unit, const absl::Status& status) override;
  void OnGathered(UnitIndex unit, const absl::Status& status) override;
  bool Awaited(UnitIndex unit) const override { return !units_[unit.value()].waits.empty(); }
  void ReadPart(UnitIndex unit, std::byte* to) override { fetcher_.FetchHome(unit, to); }
  void OnServed() override { Pump(); }

 private:
  enum class State : uint8_t { kAbsent, kFilling, kReady };
  struct Wait {
    Acquired done;
    CallerStream stream;
    TimePoint since;
    bool was_pending;
  };
  struct Unit {
    State state = State::kAbsent;
    bool fixed = false;    // lives in HBM for good
    bool pending = false;  // an update is under way
    bool loaded = false;
    Door door;  // open if ready and loaded and nothing is about to change it
    int acquired = 0;
    std::byte* address = nullptr;
    Fence arrival;  // of a unit that is filling and whose copies are all enqueued: their end
    SegmentList::Place place = SegmentList::kNone;  // in the cache, if it is there
    RingQueue<Wait> waits;
  };

  void Pump();
  bool TryMove(const Move& move);
  bool MayEvict(SegmentList::Place place) const;
  void Reclaim(SegmentList::Place place);
  bool CloseDoors(SegmentList::Place first, SegmentList::Place last);
  void SetDoor(Unit* unit);
  bool UnplannedWait() const;
  void BuildPlan(bool viewed_is_held);
  const IndexedTrace* Upcoming() const;
  void Serve(UnitIndex unit);
  bool IsShared(UnitIndex unit) const { return context_.placement->IsShared(unit.value()); }
  void Bring(UnitIndex unit);
  void OnThere(UnitIndex unit);
  bool IsThereFor(const Unit& unit, CallerStream stream) const;
  bool MayBeWritten(UnitIndex unit) const;
  void EndWaits(UnitIndex unit, const absl::Status& status);
  void Vacate(UnitIndex unit);
  void OnFreed();
  std::byte* AddressOf(SegmentList::Place place) const;

  const Context context_;
  Views views_;
  Fetcher fetcher_;
  UnitGathers* gathers_ = nullptr;
  TraceBook book_;
  std::vector<Unit> units_;
  SegmentList segments_;                       // of the cache
  std::vector<SegmentList::Place> leftovers_;  // of these
  std::vector<UnitIndex> waiting_units_;       // that have waits, the first to wait first
  Planner planner_;
  std::vector<UnitIndex> plan_waiting_;  // units that waited for a move when the plan was made;
                                         // they come before the trace
  size_t plan_position_ = 0;             // the book's position when the plan was made
  bool unplanned_ = false;  // somebody waits for a unit that perhaps no coming move brings
  bool misfit_ = false;     // a move no longer fits what the cache holds: plan again
  bool plan_dirty_ = true;  // something has changed since: planning again may help
  bool suspended_ = false;
  bool boundary_ = false;
  int waiting_ = 0;
  absl::Status failed_;
  TimePoint last_progress_{0};
  TimePoint planned_around_{0};  // when CheckStuck last tried
  const Nanos stuck_after_;
  Counter* const acquires_;
  Counter* const demand_misses_;
  Counter* const evictions_;
  Counter* const departures_;
  Counter* const stall_update_ns_;
  Counter* const stall_fetch_ns_;
  Histogram* const acquire_ns_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RESIDENCY_H_
