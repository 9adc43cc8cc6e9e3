// offload/run/calls.h
//
// What callers ask for, on its way to the control thread, in the order in which it was sent. Calls
// are small: what is large, and keeps memory, is passed by pointer and used again.
//
// Whoever changes something at once, before the control thread hears of it (enters a unit, records
// the points of a release), takes a Place before: from then on nothing can fail for want of memory.
// So a call that throws std::bad_alloc has done nothing.
//
// Threads: Take, Heard and SetHeeded on the control thread, the rest on any. Allocates when more
// calls are on their way than ever before.

#ifndef SLUICE_OFFLOAD_RUN_CALLS_H_
#define SLUICE_OFFLOAD_RUN_CALLS_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "core/event.h"
#include "core/fence.h"
#include "core/ring_queue.h"
#include "offload/run/checkpoint_job.h"
#include "offload/run/gradients.h"
#include "offload/run/runtime_options.h"
#include "offload/run/tickets.h"
#include "offload/run/value_access.h"
#include "optim/norm.h"

namespace sluice {

// Things that are used again, so that they keep their memory. Threads: any.
template <typename T>
class Spares {
 public:
  Spares() { spares_.reserve(16); }
  std::unique_ptr<T> Take() {  // one that was given, or a new one
    {
      const std::lock_guard lock(mutex_);
      if (!spares_.empty()) {
        std::unique_ptr<T> one = std::move(spares_.back());
        spares_.pop_back();
        return one;
      }
    }
    return std::make_unique<T>();
  }
  void Give(std::unique_ptr<T> one) {
    const std::lock_guard lock(mutex_);
    spares_.push_back(std::move(one));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> spares_;  // guarded by mutex_
};

using CheckpointCall = std::variant<SaveRequest, LoadRequest>;

// Steps, value requests, checkpoints and the forgetting of gradients are begun in turn: one at a
// time, but value requests together. Every later call of another kind waits until they have ended.
struct Turn {
  enum class Kind : uint8_t { kStep, kValue, kClearGrads, kCheckpoint };

  Kind kind = Kind::kStep;
  StepRequest step;
  TimePoint called{0};  // of a step
  ValueRequest value;
  std::optional<TensorIndex> cleared;  // of kClearGrads; none: all
  std::unique_ptr<CheckpointCall> checkpoint;
  Ticket ticket = 0;                     // 0: nobody waits
  bool summing = false;                  // the step waits for sums
  bool summed = false;                   // all gradients have arrived and are summed
  bool meets = false;                    // the other ranks were told that this one is here
  bool met = false;                      // all are
  bool at_access = false;                // of a value: the other ranks were told so
  bool exchanged = false;                // the step's sums were sent
  bool begun = false;                    // the checkpoint is being saved, or loaded
  std::optional<ClipDecision> decision;  // the step waits for fetches to end
  std::optional<absl::Status> ended;     // the value request; the turn, when those before it have

  void Reset() {  // as a new one, but for the memory of `step`
    StepRequest kept = std::move(step);
    kept.clip_norm = 0;
    kept.groups.clear();
    kept.lent.clear();
    *this = Turn{};
    step = std::move(kept);
  }
};

struct GradsCall {
  std::vector<GivenGradient> given;
  Fence fence;
  Ticket ticket = 0;
};
struct AcquireCall {
  UnitIndex unit;
  CallerStream stream;
  Ticket ticket;
};
struct EnteredCall {  // the caller's thread has acquired the unit itself
  UnitIndex unit;
};
struct ReleaseCall {
  UnitIndex unit;
  Fences fences;
};
struct BeginCall {
  uint32_t key;
  bool boundary;
};
struct EndCall {};
struct DrainCall {
  Ticket ticket;
};
using Call = std::variant<EndCall, BeginCall, EnteredCall, AcquireCall, ReleaseCall,
                          std::unique_ptr<GradsCall>, std::unique_ptr<Turn>, DrainCall>;

class Calls {
 public:
  // `arrived` is posted to `inbox` when calls are to be heard of; handling it begins with Heard.
  Calls(Inbox* inbox, Event* arrived);

  // Room for one call, given back if none is sent.
  class Place {
   public:
    explicit Place(Calls* calls);  // may throw std::bad_alloc; nothing after it does
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    // At most one of these, once.
    void Send(Call call) { std::exchange(calls_, nullptr)->Put(std::move(call), Heed::kSoon); }
    // To be heard of when anything else is, or calls are heeded, or many have been sent.
    void SendQuietly(Call call) {
      std::exchange(calls_, nullptr)->Put(std::move(call), Heed::kSometime);
    }

   private:
    Calls* calls_;
  };
  void Send(Call call) { Place(this).Send(std::move(call)); }

  // Whether a turn was sent that has not ended: acquisitions come after it.
  bool turn_sent() const { return turns_ > 0; }
  void TurnEnded() { --turns_; }

  bool any() const { return sent_ > 0; }
  void Take(RingQueue<Call>* to);  // all that were sent
  void Heard();                    // the inbox no longer has the event
  // Whether those that are sent quietly from now on are announced. Either they are, or any() says
  // afterwards that there is one.
  void SetHeeded(bool heeded) { heeded_ = heeded; }
  const std::atomic<bool>& heeded() const { return heeded_; }

 private:
  enum class Heed : uint8_t { kSoon, kSometime };
  static constexpr size_t kQuietMax = 256;  // so many are announced, heeded or not

  void Grow();
  void Put(Call call, Heed heed);

  Inbox* const inbox_;
  Event* const arrived_;
  std::mutex mutex_;
  std::vector<Call> calls_;  // guarded by mutex_; its capacity is capacity_
  bool announced_ = false;   // guarded by mutex_; `arrived_` is in the inbox
  std::atomic<size_t> capacity_{
      0};                          // never less than `placed_`, but while a Place waits to grow it
  std::atomic<size_t> placed_{0};  // places that were taken, those of calls_ too
  std::atomic<size_t> sent_{0};    // in calls_
  std::atomic<int> turns_{0};
  std::atomic<bool> heeded_{true};
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CALLS_H_
