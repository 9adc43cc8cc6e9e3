// offload/run/agreement.h
//
// What the ranks tell each other so that they do the same things in the same order, whatever each
// of them comes to first. In rounds, every rank says what it has become ready for, and every rank
// hears all of it, in one order that is the same on all. What follows from what was heard is
// therefore the same everywhere: nobody waits in a collective that others never come to, and a
// rank that has no use for an operation takes part in it all the same.
//
// A round is one small all-gather. A rank comes to it when it has something to say, else when it is
// time to hear of others (pace.h).
//
// Threads: the control thread. Allocates when more is waiting to be said than ever before.

#ifndef SLUICE_OFFLOAD_RUN_AGREEMENT_H_
#define SLUICE_OFFLOAD_RUN_AGREEMENT_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/metrics.h"
#include "core/ring_queue.h"
#include "offload/run/pace.h"
#include "offload/run/topic.h"

namespace sluice {

class Agreement final : private Event {
 public:
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void OnSaid(Rank rank, Said said) = 0;  // also of this rank's own
    // No round follows. Again whenever there is something to say.
    virtual void OnDisagreement(const absl::Status& status) = 0;
  };

  // None of these is owned.
  Agreement(Communicator* communicator, Clock* clock, Inbox* inbox, Metrics* metrics,
            Observer* observer);

  // Whatever is said is heard in the order in which it was.
  void Say(Said said);
  // Begins a round if there is something to say, or if it is time to hear of others. Call now and
  // then, and when NextTime has come.
  void Poll();
  TimePoint began() const { return in_round_ ? began_ : kForever; }  // the round under way
  TimePoint NextTime() const { return in_round_ || stopped_ ? kForever : next_time_; }
  void Stop() { stopped_ = true; }  // no round begins any more, and nothing more is heard

 private:
  static constexpr size_t kSaidMax = 31;
  struct Message {  // of a rank in a round
    uint64_t count;
    std::array<Said, kSaidMax> said;
  };
  static_assert(sizeof(Message) == 256);

  void Begin();
  void Handle() override;  // the round has ended

  Communicator* const communicator_;
  Clock* const clock_;
  Inbox* const inbox_;
  Observer* const observer_;
  RingQueue<Said> to_say_;
  Message message_{};
  std::vector<Message> heard_;  // by rank
  ConstMemoryView send_;
  std::vector<MemoryView> receive_;
  const std::vector<uint32_t> ends_;
  CommOp op_;
  absl::Status failure_;
  bool in_round_ = false;
  bool stopped_ = false;
  TimePoint next_time_{0};
  TimePoint began_{0};
  Pace pace_;
  Counter* const rounds_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_AGREEMENT_H_
