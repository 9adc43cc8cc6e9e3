// comm/supplied.h
//
// A Communicator over a table of C functions that the embedding framework supplies (comm_table.h).
// Two threads of the communicator's own call them: one starts operations, in order and some ahead
// (CommOptions::in_flight), the other waits for each.
//
// Whether ranks disagree the framework may see or not (Communicator::history tells); where it
// doesn't, the deadline ends it: the table's abort is called then, and the operation ends when wait
// says that it failed, with its words if it has any (it may know which rank is the cause), or three
// seconds later whatever wait says: then its memory is lost (CommOp::memory_lost). A wait that
// never returns is the one thing that can't be ended from here.
//
// Beyond what all communicators allocate: a list of buffers as long as the longest so far.

#ifndef SLUICE_COMM_SUPPLIED_H_
#define SLUICE_COMM_SUPPLIED_H_

#include <memory>

#include "absl/status/statusor.h"
#include "comm/comm_table.h"
#include "comm/communicator.h"

namespace sluice {

// Copies the table; `clock` (not owned, in real time) outlives the communicator. Errors:
// InvalidArgument naming what the table lacks, ResourceExhausted if threads can't be started.
absl::StatusOr<std::unique_ptr<Communicator>> MakeSuppliedCommunicator(
    const sluice_comm_table& table, const CommOptions& options, const Clock* clock);

}  // namespace sluice

#endif  // SLUICE_COMM_SUPPLIED_H_
