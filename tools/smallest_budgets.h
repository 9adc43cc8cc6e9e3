// tools/smallest_budgets.h
//
// How much each tier would need, where a plan can't work. The placement itself is asked, once a
// tier, so that it can't say anything else than the placement does. Pure.

#ifndef SLUICE_TOOLS_SMALLEST_BUDGETS_H_
#define SLUICE_TOOLS_SMALLEST_BUDGETS_H_

#include "offload/run/factory.h"

namespace sluice::tools {

// Tier by tier, hbm first: the smallest budget with which a placement exists when the tiers before
// it have what they were given, but at least their smallest, and those after it are unlimited.
Budgets SmallestBudgets(const PlanInput& input);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_SMALLEST_BUDGETS_H_
