// comm/nccl_handle.h
//
// A communicator of NCCL's, which doesn't block: every call may only have begun when it returns,
// and nothing else may be called before it has ended. Waiting for that is bounded here, and given
// up when the ranks' communication is broken.
//
// Threads: one at a time, whose device is the communicator's. Allocates what errors say.

#ifndef SLUICE_COMM_NCCL_HANDLE_H_
#define SLUICE_COMM_NCCL_HANDLE_H_

#include <atomic>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "comm/nccl_library.h"
#include "comm/rank.h"
#include "core/clock.h"

namespace sluice {

// How long a call may take. None of this is owned.
struct NcclPatience {
  const Clock* clock;
  Deadline deadline;
  const std::atomic<bool>* broken;  // nobody waits any more
  const Communicator* control;      // by which ranks hear of each other: nor when it is broken
};

class NcclHandle {
 public:
  explicit NcclHandle(std::shared_ptr<const NcclLibrary> library) : library_(std::move(library)) {}
  // Aborts it if it is still there.
  ~NcclHandle() { Abort(); }
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // Every rank calls it with the same id. Errors: as Settle.
  absl::Status Init(const NcclUniqueId& id, Rank rank, uint32_t ranks,
                    const NcclPatience& patience);

  // Waits until a call that said `result` has ended. Errors: NCCL's; DeadlineExceeded; what broke
  // the control communicator; Aborted if this one was broken meanwhile.
  absl::Status Settle(NcclResult result, const char* what, const NcclPatience& patience);

  // What has gone wrong since, in what was put on a stream.
  absl::Status AsyncError();

  // Lets what was begun end, and gives back what NCCL has; if that takes too long, aborts.
  absl::Status Finish(const NcclPatience& patience);
  // Ends what is on the stream; the stream then runs on. A second call does nothing.
  void Abort();

  NcclComm* comm() const { return comm_; }  // null before Init and after Finish or Abort
  const NcclApi& api() const { return library_->api(); }
  const NcclLibrary& library() const { return *library_; }

 private:
  const std::shared_ptr<const NcclLibrary> library_;
  NcclComm* comm_ = nullptr;
};

}  // namespace sluice

#endif  // SLUICE_COMM_NCCL_HANDLE_H_
