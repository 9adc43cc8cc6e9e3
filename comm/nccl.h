// comm/nccl.h
//
// A Communicator over NCCL, between memory of GPUs. NCCL itself neither sees that ranks call
// different things nor that one of them has gone: it waits, on the GPU, or moves wrong bytes. So
// ranks meet in host memory first (rendezvous.h), over another communicator of the same ranks, the
// framework's say, and NCCL is told of an operation when all have come to it. No GPU waits for a
// rank that is late, and who is missing, has left or disagrees is named as that communicator names
// it. Ranks meet some operations ahead (CommOptions::in_flight) of what is on the stream.
//
// What goes wrong on the stream NCCL's asynchronous errors tell, or else the deadline; then NCCL's
// communicator is aborted, and an operation ends when the stream has run past it, or ten seconds
// later whatever it does: then its memory is lost (CommOp::memory_lost). A call of NCCL's that
// never returns is the one thing that can't be ended from here.
//
// Close gives NCCL the options' close_timeout once more, to end what it keeps with its peers, and
// aborts it then. Of several communicators over the same GPUs each launches when its own ranks have
// met: in an order that may differ from rank to rank, which NCCL allows as long as the GPUs can run
// their operations side by side.
//
// Ranks are processes, each with a GPU of its own: between GPUs of one process NCCL may touch
// another rank's memory when that rank has aborted already.
//
// Two threads of the communicator's own: one meets, the other drives NCCL and the stream.

#ifndef SLUICE_COMM_NCCL_H_
#define SLUICE_COMM_NCCL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/nccl_library.h"
#include "core/side_stream.h"

namespace sluice {

// All ranks of `control` call it, and it returns when all have, or after the options' timeout.
// `control` is of the same ranks, in host memory, and used for nothing else; its own deadline is
// how long ranks wait for each other. The stream's staging is at least NcclCalls::StagingMin, the
// same on all ranks. `clock` (not owned, in real time) outlives the communicator. Errors: NCCL's,
// the control communicator's; FailedPrecondition where ranks have different versions or staging.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::shared_ptr<const NcclLibrary> library, std::unique_ptr<Communicator> control,
    std::unique_ptr<SideStream> stream, const CommOptions& options, const Clock* clock);

}  // namespace sluice

#endif  // SLUICE_COMM_NCCL_H_
