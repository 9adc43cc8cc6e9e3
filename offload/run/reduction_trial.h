// offload/run/reduction_trial.h
//
// Whether the ranks' communicator of gradients can add them up itself (ReductionMode::kLibrary):
// what an embedding framework supplied need not, and says so when it is asked only.

#ifndef SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_
#define SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace sluice {

// Adds up a value of each rank in host memory. All ranks call it, and it blocks until they have.
// Errors: FailedPrecondition with what the communicator says, or with the wrong sum.
absl::Status TryLibraryReduction(Communicator* gradients);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_REDUCTION_TRIAL_H_
