// comm/communicator.h
//
// A Communicator is what one rank says to the other ranks of a group: collectives and point to
// point, asynchronously, over memory that the caller owns. It knows no tensors, units or tiers, and
// decides nothing about what is sent when.
//
// Implementations: threads of one process (in_process.h), a table of functions that the embedding
// framework supplies (supplied.h), NCCL between GPUs (nccl.h), and simulated ranks in virtual time
// (sim_ranks.h). One suite tests what is promised here of all of them (tests/comm).
//
// Order: operations of one communicator begin in the order of Enqueue, and end in it; those of
// different communicators run side by side. Any number may be pending. A send ends when its peer
// has received, so two ranks that both send to each other first wait for each other: exchange with
// an all-to-all.
//
// Failure: an operation that has started never waits for ever. Whatever goes wrong on one rank (it
// is aborted, its library reports an error, it is closed while others need it, its operation has
// another kind, tag or size than theirs) ends what is pending on every rank that it concerns, in
// order, with a status that names the rank. Where an implementation sees it, it does so at once;
// where it can't, `timeout` after the operation started, and it names the ranks that may be the
// ones. A rank whose fence stays open has not started: the others' timeouts name it. From then on
// the communicator is broken: status() says why, and so does every operation that is enqueued.
//
// Threads: Enqueue and Close belong to one thread, the owner; all else may be called from any.
// Memory: the caller owns an operation, its lists of views, the fence and the memory until the
// operation's event was posted; afterwards nobody touches them, on no rank (but see memory_lost).
// Nothing is allocated per operation unless something goes wrong.

#ifndef SLUICE_COMM_COMMUNICATOR_H_
#define SLUICE_COMM_COMMUNICATOR_H_

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "comm/comm_op.h"
#include "comm/op_rules.h"
#include "comm/rank.h"
#include "core/clock.h"
#include "core/types.h"

namespace sluice {

struct CommOptions {
  // From an operation's start, when it was the first in line and its fence complete, to its end.
  Nanos timeout = std::chrono::minutes(10);
  // How long Close lets pending operations go on.
  Nanos close_timeout = std::chrono::seconds(1);
  // So many operations a supplied table, or NCCL, may have under way at a time; at least 1.
  uint32_t in_flight = 2;
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

  // Never blocks. That `op` has the views that its kind wants is checked. The last rank to come to
  // a small operation may carry it out right here (in_process.h).
  void Enqueue(CommOp* op);

  // Ends what is pending with `why`, which is not ok, and tells the other ranks. Returns at once;
  // an operation that all have begun may still end well, and takes no longer than its copying, or
  // than the framework takes to give it up (supplied.h). Nothing happens if it is broken already.
  void Abort(const absl::Status& why);

  // Ok, or what broke it: the first error stays.
  absl::Status status() const;
  size_t pending() const;    // operations enqueued and not yet ended
  bool memory_lost() const;  // that of any operation was (CommOp::memory_lost)
  CommCounts counts() const;

  // What the kinds and tags of all collectives so far, in the order of Enqueue, come to: the same
  // on all ranks as long as they have called the same. For who must compare what no implementation
  // sees, by sending it around.
  uint64_t history() const;

  // Lets pending operations end for so long, then aborts them: whoever closes several communicators
  // waits for all of them at once. As Close, the owner's.
  void LetEnd(Nanos longest);
  // Lets pending operations end for close_timeout, then aborts them, waits for an Abort of another
  // thread that is telling the others, and leaves the group. Returns what broke it, if anything did
  // before or now; from then on it is broken. A second call does nothing and returns the same.
  absl::Status Close();

  // What was chosen and why, for `sluice doctor`: "4 ranks in one process: threads, shared memory".
  virtual std::string description() const = 0;

 protected:
  // `clock` is not owned and outlives the communicator.
  Communicator(Rank rank, uint32_t ranks, const CommOptions& options, const Clock* clock)
      : rank_(rank), ranks_(ranks), options_(options), clock_(clock), sizer_(rank, ranks) {}

  const CommOptions& options() const { return options_; }
  const Clock& clock() const { return *clock_; }

  // Takes the operation, also when broken: those before it end first. It calls End for each.
  virtual void Start(CommOp* op) = 0;
  // The communicator has been broken by Abort: what is pending is to end.
  virtual void Interrupt(const absl::Status& why) = 0;
  // Nothing is pending, nor will be: leaves the group. Afterwards nobody calls this object.
  virtual void Leave() = 0;
  // Waits until nothing is pending, for `longest` at most; returns whether that is so.
  virtual bool AwaitIdle(Nanos longest);

  // The first error stays; returns whether this is it.
  bool Break(const absl::Status& why);
  // Posts the operation's event. An error breaks the communicator.
  void End(CommOp* op, const absl::Status& status);

 private:
  const Rank rank_;
  const uint32_t ranks_;
  const CommOptions options_;
  const Clock* const clock_;
  const OpSizer sizer_;
  bool closed_ = false;        // this and below: the owner's
  absl::Status close_status_;  // what Close has returned
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  absl::Status status_;        // this and below guarded by mutex_
  bool interrupting_ = false;  // Abort has not returned yet
  size_t pending_ = 0;
  bool memory_lost_ = false;
  CommCounts counts_;
  uint64_t history_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_COMM_COMMUNICATOR_H_
