// offload/run/reduction_trial.h
//
// Whether the ranks' communicator of gradients can add them up itself (ReductionMode::kLibrary):
// what an embedding framework supplied need not, and says so when it is asked only.

#ifndef SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_
#define SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace sluice {

// Adds up a value of each rank in host memory. All ranks call it, and it blocks until they have, or
// until it is to give up (RunOp).
// Errors: FailedPrecondition with what the communicator says if it refuses (Unimplemented or
// InvalidArgument), or with the wrong sum; what else the operation fails with, as it is.
absl::Status TryLibraryReduction(Communicator* gradients, const int32_t* give_up = nullptr);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_
