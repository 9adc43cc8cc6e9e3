// comm/in_process.h
//
// Ranks that are in one process, as threads of it have them. They read each other's memory: every
// byte is copied once, from where it is sent to where it is received; sums read all ranks' values
// in place, and their bits are those of ordered_reduce.h.
//
// Whoever comes last to an operation that moves little carries it out for all ranks, there and
// then: nobody is woken but those who are told of its end. Of larger ones each rank's part is done
// by a thread of its communicator's, which sleeps otherwise, and asks fences that are open.
//
// The ranks see each other's operations, so that one that disagrees, is aborted or has left is
// named at once.

#ifndef SLUICE_COMM_IN_PROCESS_H_
#define SLUICE_COMM_IN_PROCESS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace sluice {

// A group: a communicator for each of `ranks` (1 to kRanksMax), by rank. Each may be handed to a
// thread of its own and may outlive the others. `clock` (not owned) outlives them all. Errors:
// ResourceExhausted if threads can't be started.
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeInProcessRanks(
    uint32_t ranks, const CommOptions& options, const Clock* clock);

}  // namespace sluice

#endif  // SLUICE_COMM_IN_PROCESS_H_
