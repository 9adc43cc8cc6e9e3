// comm/attendance.h
//
// Who of a group has come to which operation, where one place sees them all. An operation begins
// when every rank that it needs has come to the same one; two that need each other and are not the
// same would wait for ever, so the group is broken then, as by one that needs a rank which has
// left. A rank comes in constant time; what each sends and the others expect is compared as sums,
// when all have come.
//
// Threads: guarded by its user. Allocates when it is made, and what errors say.

#ifndef SLUICE_COMM_ATTENDANCE_H_
#define SLUICE_COMM_ATTENDANCE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/comm_op.h"
#include "comm/op_rules.h"
#include "comm/rank.h"

namespace sluice {

// The ranks of an operation: all of a group, or two.
struct Party {
  uint32_t first;
  uint32_t last;
  uint32_t step;

  template <typename F>
  void ForEach(F&& f) const {  // f(Rank), in order
    for (uint32_t r = first; r <= last; r += step) f(Rank(r));
  }
};

class Attendance {
 public:
  explicit Attendance(uint32_t ranks) : ops_(ranks), running_(ranks), gone_(ranks) {}

  uint32_t ranks() const { return static_cast<uint32_t>(ops_.size()); }

  // The rank has come to `op`. Returns whether the operation begins now: then it is running on this
  // rank and all that it needs. Errors break the group: FailedPrecondition where ranks disagree,
  // Unavailable where one has left. Nobody comes to a broken group.
  absl::StatusOr<bool> Come(Rank rank, CommOp* op);

  // The rank has done with its operation, or given it up.
  void Go(Rank rank) {
    ops_[rank.value()] = nullptr;
    running_[rank.value()] = 0;
  }

  // The rank will come to nothing more. Error: Unavailable if another waits for it.
  absl::Status Leave(Rank rank);

  CommOp* op(Rank rank) const { return ops_[rank.value()]; }
  // By rank; null of those that have come to nothing. A running rank's entry stays until it goes.
  std::span<CommOp* const> ops() const { return ops_; }

  // Whom the operation needs to which the rank has come, the rank included.
  Party PartyOf(Rank rank) const;

  // For whom the rank, which has come and is not running, waits: "rank 0 waits in a barrier for
  // ranks 1, 3".
  std::string WaitsFor(Rank rank) const;

 private:
  // Whether the other has come to an operation that needs the rank.
  bool HasCome(Rank other, Rank rank) const {
    const CommOp* const op = ops_[other.value()];
    return op != nullptr && running_[other.value()] == 0 && Needs(*op, other, rank);
  }
  absl::StatusOr<bool> ComeToPeer(Rank rank);
  absl::StatusOr<bool> ComeToAll(Rank rank);
  absl::Status Agree(Rank a, Rank b) const;
  // All of the party have come.
  absl::StatusOr<bool> Begin(const Party& party);

  std::vector<CommOp*> ops_;  // by rank, as the rest
  std::vector<uint8_t> running_;
  std::vector<uint8_t> gone_;
  uint32_t gone_count_ = 0;
  uint32_t in_pairs_ = 0;  // ranks that have come to a point to point and wait
  uint32_t in_all_ = 0;    // ranks that have come to a collective and wait,
  Rank first_in_all_;      // and the first of them
};

}  // namespace sluice

#endif  // SLUICE_COMM_ATTENDANCE_H_
