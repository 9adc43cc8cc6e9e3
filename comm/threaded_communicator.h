// comm/threaded_communicator.h
//
// A Communicator whose operations are carried out one after the other by a thread of its own, which
// sleeps while there are none: what the implementations share that block in an operation.
//
// Who derives from it starts the thread when it is made, and calls Close in its destructor.

#ifndef SLUICE_COMM_THREADED_COMMUNICATOR_H_
#define SLUICE_COMM_THREADED_COMMUNICATOR_H_

#include <thread>

#include "comm/communicator.h"
#include "core/work_queue.h"

namespace sluice {

class ThreadedCommunicator : public Communicator {
 public:
  ~ThreadedCommunicator() override;
  absl::Status Close() final;

 protected:
  // `clock` is not owned and outlives the communicator; it runs in real time.
  ThreadedCommunicator(Rank rank, uint32_t ranks, const CommOptions& options, const Clock* clock)
      : Communicator(rank, ranks), options_(options), clock_(clock) {}

  // Errors: ResourceExhausted if there is no thread to be had.
  absl::Status StartThread();

  // On the thread: carries `op` out by `deadline`, or ends soon after Interrupt. Its memory is the
  // caller's again when this returns.
  virtual absl::Status CarryOut(CommOp* op, Deadline deadline) = 0;
  // Nothing is pending any more, and the thread is gone: leaves the group.
  virtual void Leave() = 0;

  const CommOptions& options() const { return options_; }
  const Clock& clock() const { return *clock_; }

 private:
  void Start(CommOp* op) final;
  void Work();

  const CommOptions options_;
  const Clock* const clock_;
  WorkQueue<CommOp> queue_;
  std::thread thread_;
  bool closed_ = false;        // this and below: the owner's
  absl::Status close_status_;  // what Close has returned
};

}  // namespace sluice

#endif  // SLUICE_COMM_THREADED_COMMUNICATOR_H_
