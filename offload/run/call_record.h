// offload/run/call_record.h
//
// What the caller did in its last step, call by call, and for how long it was on its own before
// each: with the model and the plan, all that it takes to do the step again elsewhere
// (sim/replay.h). A step is from one call of step to the next; one in which rates were set is left
// out, since they were perhaps measured in it.
//
// The caller is on its own from the end of a call, or of a wait, to the next. Times of callers that
// are here at the same time are mixed.
//
// Threads: any. Allocates at construction, if it records, and in last_step.

#ifndef SLUICE_OFFLOAD_RUN_CALL_RECORD_H_
#define SLUICE_OFFLOAD_RUN_CALL_RECORD_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "core/clock.h"
#include "offload/run/tickets.h"

namespace sluice {

struct GivenGradient;

struct RecordedCall {
  enum class Kind : char {
    kBegin = 'B',    // of an iteration; index: 2 * key, and 1 more if it is a boundary
    kEnd = 'E',      // of the iteration
    kAcquire = 'A',  // index: the unit, as of the next
    kRelease = 'R',
    kGrads = 'G',      // index: the tensor
    kMoreGrads = 'g',  // another tensor of the same call
    kDrain = 'D',
    kWait = 'W',  // index: of the call in the list whose ticket it waits for
    kStep = 'S'
  };
  static constexpr int64_t kStepBefore = -1;  // what a wait may be for too

  Kind kind = Kind::kEnd;
  int64_t index = 0;
  Nanos own{0};
};

class CallRecord {
 public:
  static constexpr Nanos kOwnMax = std::chrono::hours(1);  // more between two calls is no compute
  static constexpr size_t kCallsMax = 1 << 16;             // a step of more is not kept
  // How far back a wait's call is looked for.
  static constexpr size_t kLookBack = 1024;

  // `clock` is not owned; null: nothing is recorded.
  explicit CallRecord(const Clock* clock);

  // A call that has been made. ticket: 0 if it has none.
  void Called(RecordedCall::Kind kind, int64_t index = 0, Ticket ticket = 0);
  void CalledGrads(std::span<const GivenGradient> given, Ticket ticket);  // one call, of several
  void Disturbed();  // the step that is under way is not kept
  std::vector<RecordedCall> last_step() const;

  // While its caller waits for `ticket`, perhaps in several goes.
  class Waiting {
   public:
    Waiting(CallRecord* record, Ticket ticket) : record_(record), ticket_(ticket) {
      record_->WaitBegins();
    }
    void Over() { record_->WaitEnds(ticket_); }

   private:
    CallRecord* const record_;
    const Ticket ticket_;
  };

 private:
  struct Entry {
    RecordedCall call;
    Ticket ticket = 0;
  };

  void EndOwn(bool goes_on);
  void WaitBegins();
  void WaitEnds(Ticket ticket);
  void Add(RecordedCall::Kind kind, int64_t index, Ticket ticket);
  void EndStep(Ticket ticket);

  const Clock* const clock_;
  mutable std::mutex mutex_;  // guards the rest
  std::vector<Entry> calls_;  // since the last step
  std::vector<Entry> last_;   // the last step's
  Ticket step_before_ = 0;
  bool stepped_ = false;
  bool keep_ = true;
  bool waiting_ = false;
  TimePoint since_{0};  // that the caller is on its own, unless it waits
  Nanos own_{0};        // before that, and since the last call
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CALL_RECORD_H_
