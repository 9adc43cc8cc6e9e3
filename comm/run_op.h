// comm/run_op.h
//
// One operation at a time, for who has nothing else to do meanwhile.

#ifndef SLUICE_COMM_RUN_OP_H_
#define SLUICE_COMM_RUN_OP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace sluice {

// Carries `op` out, whose inbox and event are set here, and waits for its end: as long as the
// communicator lets it. Returns op->status. `give_up`: if set, looked at every 50 ms; once it is
// not 0, which another thread may make it, the communicator is aborted. Threads: the communicator's
// owner.
absl::Status RunOp(CommOp* op, Communicator* communicator, const int32_t* give_up = nullptr);

}  // namespace sluice

#endif  // SLUICE_COMM_RUN_OP_H_
