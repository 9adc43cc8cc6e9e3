// offload/plan/default_budgets.h
//
// How much of each tier a runtime may use when nobody said. Pure.

#ifndef SLUICE_OFFLOAD_PLAN_DEFAULT_BUDGETS_H_
#define SLUICE_OFFLOAD_PLAN_DEFAULT_BUDGETS_H_

#include <optional>

#include "core/types.h"
#include "offload/plan/layout.h"
#include "offload/plan/placement.h"

namespace sluice {

// Budgets for tiers that were not given one (negative): from what the machine and its cgroup have
// left, `available`, and what a GPU has, `gpu_available` (none: HBM is memory of the host). HBM: if
// all must live there, what that takes; else all parameters if they fit in half of the GPU's
// memory, or a quarter of the host's, else that share; pinned what remains of the host's after a
// reserve for the process; NVMe without limit (the free space is checked when files are made).
Budgets DefaultBudgets(const Budgets& given, const ModelLayout& layout,
                       const PlacementOptions& options, Bytes available,
                       std::optional<Bytes> gpu_available);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_DEFAULT_BUDGETS_H_
