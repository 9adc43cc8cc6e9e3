// comm/attendance.h
//
// Who of a group has come to which operation, where one place sees them all. An operation begins
// when every rank that it needs has come to the same one; two that need each other and are not the
// same would wait for ever, so the group is broken then, as by one that needs a rank which has
// left.
//
// Threads: guarded by its user. Allocates when it is made, and what errors say.

#ifndef SLUICE_COMM_ATTENDANCE_H_
#define SLUICE_COMM_ATTENDANCE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/local_ops.h"
#include "comm/rank.h"

namespace sluice {

class Attendance {
 public:
  explicit Attendance(uint32_t ranks) : ops_(ranks), running_(ranks), gone_(ranks) {}

  uint32_t ranks() const { return static_cast<uint32_t>(ops_.size()); }

  // The rank has come to `op`. Returns whether the operation begins now: then it is running on this
  // rank and all that it needs. Errors break the group: FailedPrecondition where ranks disagree,
  // Unavailable where one has left.
  absl::StatusOr<bool> Come(Rank rank, CommOp* op);

  // The rank has done with its operation, or given it up.
  void Go(Rank rank) {
    ops_[rank.value()] = nullptr;
    running_[rank.value()] = 0;
  }

  // The rank will come to nothing more. Error: Unavailable if another waits for it.
  absl::Status Leave(Rank rank);

  bool running(Rank rank) const { return running_[rank.value()] != 0; }
  CommOp* op(Rank rank) const { return ops_[rank.value()]; }
  // By rank; null of those that have come to nothing. A running rank's entry stays until it goes.
  std::span<CommOp* const> ops() const { return ops_; }

  // f(Rank) for the rank itself and all that its operation needs.
  template <typename F>
  void ForParticipants(Rank rank, F&& f) const {
    const CommOp& op = *ops_[rank.value()];
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (Rank(r) == rank || Needs(op, rank, Rank(r))) f(Rank(r));
    }
  }

  // For whom the rank, which has come and is not running, waits: "rank 0 waits in a barrier for
  // ranks 1, 3".
  std::string WaitsFor(Rank rank) const;

 private:
  // Whether the other has come to an operation that needs the rank.
  bool HasCome(Rank other, Rank rank) const {
    const CommOp* const op = ops_[other.value()];
    return op != nullptr && !running(other) && Needs(*op, other, rank);
  }

  std::vector<CommOp*> ops_;  // by rank, as the rest
  std::vector<uint8_t> running_;
  std::vector<uint8_t> gone_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_ATTENDANCE_H_
