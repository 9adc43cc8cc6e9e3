// comm/communicator.h
//
// A Communicator is what one rank says to the other ranks of a group: collectives and point to
// point, asynchronously, over memory that the caller owns. It knows no tensors, units or tiers, and
// decides nothing about what is sent when.
//
// Implementations: threads of one process (in_process.h), a table of functions that the embedding
// framework supplies (supplied.h), and simulated ranks in virtual time (sim_ranks.h). One suite
// tests what is promised here of all of them (tests/comm).
//
// Order: operations of one communicator run in the order of Enqueue, one after the other as the
// other ranks see it; those of different communicators run side by side. Any number may be pending.
// A send ends when its peer has received, so two ranks that both send to each other first wait for
// each other: exchange with an all-to-all.
//
// Failure: an operation never waits for ever. Whatever goes wrong on one rank (it is aborted, its
// library reports an error, it is closed while others need it, its operation is another than
// theirs or of another size) ends what is pending on every rank that it concerns, in order, with a
// status that names the rank. Where an implementation sees it, it does so at once; where it can't,
// `timeout` after the operation came to be the first in line, and it names the ranks that may be
// the ones. From then on the communicator is broken: status() says why, and so does every operation
// that is enqueued.
//
// Threads: Enqueue and Close belong to one thread, the owner; all else may be called from any.
// Memory: the caller owns an operation, its lists of views, the fence and the memory until the
// operation's event was posted; afterwards nobody touches them, on no rank. Nothing is allocated
// per operation unless something goes wrong.

#ifndef SLUICE_COMM_COMMUNICATOR_H_
#define SLUICE_COMM_COMMUNICATOR_H_

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "comm/rank.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/fence.h"
#include "core/grid.h"
#include "core/intrusive_list.h"
#include "core/types.h"

namespace sluice {

//                 send                receive             what is received
enum class CommKind : uint8_t {
  kAllGather,      // one view         one per rank        by rank: what it sent
  kReduceScatter,  // one per rank     one view            the sum of what was sent for this rank
  kAllReduce,      // one view         one as large        the sum of what was sent
  kBroadcast,      // the peer: one    the others: one     what the peer sent
  kAllToAll,       // one per rank     one per rank        by rank: what it sent to this one
  kSend,           // one, for peer    none
  kReceive,        // none             one                 what the peer sent to this rank
  kBarrier,        // none             none                it ends when all ranks have come to it
};
inline constexpr int kCommKindCount = 8;
const char* Name(CommKind kind);

// Views may be empty, of any size each, and lie anywhere; a sent view and the one that receives it
// are equally large. No receive view overlaps another view of the operation, but it may be the very
// memory of what this rank itself sends into it: then that is in place.
struct CommOp {
  CommKind kind = CommKind::kBarrier;
  FloatType type = FloatType::kF32;  // of what is added: reduce-scatter and all-reduce
  Rank peer;                         // of a broadcast its root; of send and receive the other rank
  std::span<const ConstMemoryView> send;
  std::span<const MemoryView> receive;
  const Fence* after = nullptr;  // if set, the operation starts when this is complete
  // Written by the communicator, then `event` is posted to `inbox` (both not owned, both required).
  absl::Status status;
  TimePoint started{0};  // when it was the first in line
  TimePoint finished{0};
  Inbox* inbox = nullptr;
  Event* event = nullptr;

 private:
  friend class IntrusiveList<CommOp>;
  CommOp* next_ = nullptr;
};

struct CommOptions {
  // From an operation's being the first in line, its fence included, to its end.
  Nanos timeout = std::chrono::minutes(10);
  // How long Close lets pending operations go on.
  Nanos close_timeout = std::chrono::seconds(10);
};

// Of operations that have ended well. Bytes are what must come from and go to other ranks.
struct CommCount {
  uint64_t operations = 0;
  Bytes sent;
  Bytes received;
};
using CommCounts = std::array<CommCount, kCommKindCount>;  // by CommKind

class Communicator {
 public:
  virtual ~Communicator() = default;  // closes
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  Rank rank() const { return rank_; }
  uint32_t ranks() const { return ranks_; }

  // Never blocks. That `op` has the views that its kind wants is checked.
  void Enqueue(CommOp* op);

  // Ends what is pending with `why`, which is not ok, and tells the other ranks. Returns at once;
  // an operation that all have begun may still end well, and takes no longer than its copying, or
  // than the framework takes to give it up (supplied.h). Nothing happens if it is broken already.
  void Abort(const absl::Status& why);

  // Ok, or what broke it: the first error stays.
  absl::Status status() const;
  size_t pending() const;  // operations enqueued and not yet ended
  CommCounts counts() const;

  // Lets pending operations end for close_timeout, then aborts them, and leaves the group. Returns
  // what broke it, if anything did before or now; from then on it is broken. A second call does
  // nothing and returns the same.
  virtual absl::Status Close() = 0;

  // What was chosen and why, for `sluice doctor`: "4 ranks in one process: threads, shared memory".
  virtual std::string description() const = 0;

 protected:
  Communicator(Rank rank, uint32_t ranks) : rank_(rank), ranks_(ranks) {}

  // Takes the operation, also when broken: those before it end first. It calls End for each.
  virtual void Start(CommOp* op) = 0;
  // The communicator has been broken by Abort: what is pending is to end.
  virtual void Interrupt(const absl::Status& why) = 0;

  // The first error stays; returns whether this is it.
  bool Break(const absl::Status& why);
  // Posts the operation's event. An error breaks the communicator.
  void End(CommOp* op, const absl::Status& status, TimePoint now);
  // Waits until nothing is pending, for `longest` of real time at most; returns whether that is so.
  bool AwaitIdle(Nanos longest);

 private:
  const Rank rank_;
  const uint32_t ranks_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  absl::Status status_;  // this and below guarded by mutex_
  size_t pending_ = 0;
  CommCounts counts_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_COMMUNICATOR_H_
