// comm/supplied.h
//
// A Communicator over a table of C functions that the embedding framework supplies (comm_table.h).
// A thread of the communicator's own calls them; operations are started one after the other.
//
// Whether ranks disagree the framework may see or not; where it doesn't, the deadline ends it: the
// table's abort is called then, and the operation ends when wait says that it failed, or ten
// seconds later whatever wait says: its status says then that the framework may still use the
// memory. A wait that never returns is the one thing that can't be ended from here.

#ifndef SLUICE_COMM_SUPPLIED_H_
#define SLUICE_COMM_SUPPLIED_H_

#include <memory>

#include "absl/status/statusor.h"
#include "comm/comm_table.h"
#include "comm/communicator.h"

namespace sluice {

// Copies the table; `clock` (not owned) outlives the communicator. Errors: InvalidArgument naming
// what the table lacks, ResourceExhausted if no thread can be started.
absl::StatusOr<std::unique_ptr<Communicator>> MakeSuppliedCommunicator(
    const sluice_comm_table& table, const CommOptions& options, const Clock* clock);

}  // namespace sluice

#endif  // SLUICE_COMM_SUPPLIED_H_
