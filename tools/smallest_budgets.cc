#include "tools/smallest_budgets.h"

#include <algorithm>
#include <optional>

#include "core/status.h"

namespace sluice::tools {

namespace {

// The smallest `*tier` with which `budgets`, of which it is one, work. They do if it is unlimited.
Bytes Smallest(const PlanInput& input, const Budgets& budgets, Bytes* tier) {
  *tier = Bytes(0);
  const absl::Status refusal = MakePlacement(input.layout, budgets, input.options).status();
  if (refusal.ok()) return *tier;
  const std::optional<Bytes> named = SmallestThatWould(refusal);
  SLUICE_CHECK_MSG(named.has_value(), Message(refusal));
  return *named;
}

}  // namespace

Budgets SmallestBudgets(const PlanInput& input) {
  Budgets smallest;
  Budgets trial{kNoLimit, kNoLimit, kNoLimit};
  smallest.hbm = Smallest(input, trial, &trial.hbm);
  trial.hbm = std::max(input.budgets.hbm, smallest.hbm);
  smallest.pinned = Smallest(input, trial, &trial.pinned);
  trial.pinned = std::max(input.budgets.pinned, smallest.pinned);
  smallest.nvme = Smallest(input, trial, &trial.nvme);
  return smallest;
}

}  // namespace sluice::tools
