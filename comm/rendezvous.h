// comm/rendezvous.h
//
// Where ranks meet before they begin an operation whose means can't tell whether all call the same
// one, nor that one of them is gone: a small exchange over another communicator of the same ranks,
// in host memory (of the framework's, say). Nobody begins before all have come to the same
// operation.
//
// Threads: one at a time; what the control communicator allows from any thread it allows here too.
// Blocks until the control communicator ends what is asked of it, which it does within its own
// bounds. Allocates at construction, and what errors say.

#ifndef SLUICE_COMM_RENDEZVOUS_H_
#define SLUICE_COMM_RENDEZVOUS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/comm_op.h"
#include "comm/communicator.h"

namespace sluice {

class Rendezvous final {
 public:
  explicit Rendezvous(std::unique_ptr<Communicator> control);

  // Waits for the ranks that `op` needs to come to it. Returns those of `marks` that all have.
  // Errors: FailedPrecondition where ranks disagree, said alike on all of them; the control
  // communicator's.
  absl::StatusOr<uint32_t> Meet(const CommOp& op, uint32_t marks);

  // Of all ranks: what each has, by rank.
  absl::StatusOr<std::vector<uint64_t>> Gather(uint64_t mine);
  // Of all ranks: `memory` becomes rank 0's.
  absl::Status TakeFirstRanks(MemoryView memory);

  Communicator& control() { return *control_; }
  const Communicator& control() const { return *control_; }

 private:
  // What a rank says of an operation.
  struct Card {
    uint64_t tag = 0;
    uint64_t sent_sum = 0;
    uint64_t received_sum = 0;
    uint64_t send_bytes = 0;
    uint64_t receive_bytes = 0;
    uint32_t peer = 0;
    uint32_t marks = 0;
    uint32_t kind = 0;
    uint32_t type = 0;
  };

  // Carries `op` out.
  absl::Status Run(CommOp* op);
  absl::Status GatherCards();
  absl::Status SwapCards(Rank peer);
  absl::StatusOr<uint32_t> Agree(uint32_t first, uint32_t last, uint32_t step) const;

  const std::unique_ptr<Communicator> control_;
  const std::vector<uint32_t> ends_;
  std::unique_ptr<std::vector<Card>> cards_;  // by rank
  std::vector<MemoryView> views_;             // of cards_
};

}  // namespace sluice

#endif  // SLUICE_COMM_RENDEZVOUS_H_
