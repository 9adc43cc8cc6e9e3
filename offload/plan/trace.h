// offload/plan/trace.h
//
// The trace: in what order units are acquired and released. TraceBook records it in the first
// iteration of each kind, says from then on what comes next, notices departures, and keeps several
// traces per kind, so that a model that takes one of a few paths is known on each. Pure
// bookkeeping; one thread; allocates while recording what is longer than ever before, and when a
// new trace is learned.
//
// A trace's position counts acquisitions. Releases are recorded (the schedule needs to know what is
// held when) but never judged: their order against acquisitions may differ from one iteration to
// the next.
//
// After a departure nobody knows yet whether an acquisition came extra, another was left out, or
// the program is somewhere else. The book then keeps every position that explains it (stay, one
// on, and after each acquisition of the same unit nearby), follows the likeliest, and drops those
// that the next acquisitions belie. When none is left, there was another edit, and it begins again.
// So an edit costs a few departures as a rule, and kPlacesMax at most: each drops one place or
// more.

#ifndef SLUICE_OFFLOAD_PLAN_TRACE_H_
#define SLUICE_OFFLOAD_PLAN_TRACE_H_

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "core/types.h"

namespace sluice {

struct TraceStep {
  UnitIndex unit;
  bool acquire;  // else release
  friend bool operator==(const TraceStep&, const TraceStep&) = default;
};
using Trace = std::vector<TraceStep>;

// A trace with what is asked of it often.
class IndexedTrace {
 public:
  static constexpr size_t kNever = std::numeric_limits<size_t>::max();

  explicit IndexedTrace(Trace steps);
  // Takes over other steps, of the same acquisitions as a rule.
  void Assign(const Trace& steps);

  const Trace& steps() const { return steps_; }
  const std::vector<UnitIndex>& acquisitions() const { return acquisitions_; }
  // The index of the step that follows the first `acquisitions` of them.
  size_t StepAfter(size_t acquisitions) const {
    return acquisitions == 0 ? 0 : step_of_[acquisitions - 1] + 1;
  }
  // The acquisitions of `unit`, in order.
  std::span<const size_t> Uses(UnitIndex unit) const;
  // The first acquisition of `unit` at or after `from`, or kNever. Takes time for the logarithm of
  // its uses.
  size_t NextUse(UnitIndex unit, size_t from) const;

 private:
  void Index();

  Trace steps_;
  std::vector<UnitIndex> acquisitions_;
  std::vector<size_t> step_of_;    // by acquisition
  std::vector<size_t> uses_;       // acquisitions, unit by unit
  std::vector<size_t> first_use_;  // by unit: where its uses begin; one more
};

class TraceBook {
 public:
  static constexpr uint32_t kKeys = 16;
  static constexpr size_t kTracesPerKey = 4;
  // How far from where it is the book looks for an unexpected unit, and how many places it keeps.
  static constexpr size_t kWindow = 4096;
  static constexpr size_t kPlacesMax = 32;

  TraceBook() { places_.reserve(kPlacesMax); }

  void Begin(uint32_t key);  // key < kKeys; ends an open iteration
  void End();

  // Records. Returns whether the acquisition was the one expected: false at a departure, and always
  // while there is no trace to follow. After a departure the book follows another trace of the same
  // beginning, or looks for its place in the same one.
  bool OnAcquire(UnitIndex unit);
  void OnRelease(UnitIndex unit);

  bool open() const { return open_; }
  // The acquisitions of the open iteration so far; null if none is open.
  const std::vector<UnitIndex>* recorded() const {
    return open_ ? &recorded_acquisitions_ : nullptr;
  }
  bool known() const { return followed_ != nullptr; }
  // What is expected from here on: its acquisitions from position() on. Null if not known. Stays
  // until the iteration ends.
  const IndexedTrace* followed() const { return followed_; }
  size_t position() const { return position_; }

  // The most recent trace of `key`, or null.
  const IndexedTrace* Latest(uint32_t key) const;
  uint32_t key() const { return key_; }
  // The key that came after `key` the last time; `key` itself if that never happened.
  uint32_t Successor(uint32_t key) const { return successor_[key]; }

  int64_t departures() const { return departures_; }

 private:
  struct Known {
    explicit Known(Trace steps) : trace(std::move(steps)) {}
    IndexedTrace trace;
    bool so_far = true;  // the open iteration has begun like this one
  };
  bool FollowOther();
  void Resynchronise(UnitIndex unit);
  void AddPlaces(UnitIndex unit);

  std::array<std::vector<std::unique_ptr<Known>>, kKeys> known_;  // latest first
  std::array<uint32_t, kKeys> successor_{};
  std::array<bool, kKeys> seen_{};
  uint32_t key_ = 0;
  bool open_ = false;
  bool any_ = false;
  Trace recorded_;
  std::vector<UnitIndex> recorded_acquisitions_;
  const IndexedTrace* followed_ = nullptr;
  size_t position_ = 0;
  std::vector<size_t> places_;  // where the program may be; the likeliest, position_, comes first
  int64_t departures_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_TRACE_H_
