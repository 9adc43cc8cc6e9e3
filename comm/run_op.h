// comm/run_op.h
//
// One operation at a time, for who has nothing else to do meanwhile.

#ifndef SLUICE_COMM_RUN_OP_H_
#define SLUICE_COMM_RUN_OP_H_

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace sluice {

// Carries `op` out, whose inbox and event are set here, and waits for its end: as long as the
// communicator lets it. Returns op->status. Threads: the communicator's owner.
absl::Status RunOp(CommOp* op, Communicator* communicator);

}  // namespace sluice

#endif  // SLUICE_COMM_RUN_OP_H_
