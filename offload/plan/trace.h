// offload/plan/trace.h
//
// The trace: in what order units are acquired and released. TraceBook records it in the first
// iteration of each kind, says from then on what comes next, notices departures, and keeps several
// traces per kind, so that a model that takes one of a few paths is known on each. Pure
// bookkeeping; one thread; allocates while recording.
//
// A trace's position counts acquisitions. Releases are recorded (the schedule needs to know what is
// held when) but never judged: their order against acquisitions may differ from one iteration to
// the next.

#ifndef SLUICE_OFFLOAD_PLAN_TRACE_H_
#define SLUICE_OFFLOAD_PLAN_TRACE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/types.h"

namespace sluice {

struct TraceStep {
  UnitIndex unit;
  bool acquire;  // else release
  friend bool operator==(const TraceStep&, const TraceStep&) = default;
};
using Trace = std::vector<TraceStep>;

// The units of a trace in the order of their acquisitions.
std::vector<UnitIndex> Acquisitions(const Trace& trace);

class TraceBook {
 public:
  static constexpr uint32_t kKeys = 16;
  static constexpr size_t kTracesPerKey = 4;

  void Begin(uint32_t key);  // key < kKeys; ends an open iteration
  void End();

  // Records. Returns whether the acquisition was the one expected: false at a departure, and always
  // while there is no trace to follow. After a departure the book follows another trace of the same
  // beginning, or skips ahead in the same one to the next acquisition of `unit`, or stays where it
  // is.
  bool OnAcquire(UnitIndex unit);
  void OnRelease(UnitIndex unit);

  bool open() const { return open_; }
  bool known() const { return followed_ != nullptr; }
  // The acquisitions expected from here on; empty if not known.
  const Trace* followed() const { return followed_; }
  size_t position() const { return position_; }  // acquisitions of `followed` that have happened

  // The most recent trace of `key`, or null.
  const Trace* Latest(uint32_t key) const;
  uint32_t key() const { return key_; }
  // The key that came after `key` the last time; `key` itself if that never happened.
  uint32_t Successor(uint32_t key) const { return successor_[key]; }

  int64_t departures() const { return departures_; }

 private:
  struct Known {
    Trace steps;
    std::vector<UnitIndex> acquisitions;
  };
  void Follow(const Known* known);

  std::array<std::vector<std::unique_ptr<Known>>, kKeys> known_;  // latest first
  std::array<uint32_t, kKeys> successor_{};
  std::array<bool, kKeys> seen_{};
  uint32_t key_ = 0;
  bool open_ = false;
  bool any_ = false;
  Trace recorded_;
  std::vector<UnitIndex> recorded_acquisitions_;
  const Known* known_followed_ = nullptr;
  const Trace* followed_ = nullptr;
  size_t position_ = 0;
  int64_t departures_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_TRACE_H_
