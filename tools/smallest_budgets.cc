#include "tools/smallest_budgets.h"

#include <algorithm>

#include "core/status.h"

namespace sluice::tools {

namespace {

constexpr Bytes kUnlimited = Bytes(INT64_MAX / 2);

// The smallest `*tier` with which `budgets`, of which it is one, work. They do if it is unlimited.
// What is too little stays too little when it gets less, so halving the range finds it.
Bytes Smallest(const PlanInput& input, const Budgets& budgets, Bytes* tier) {
  const auto works = [&] { return MakePlacement(input.layout, budgets, input.options).ok(); };
  Bytes too_little(-1);
  Bytes enough(4096);
  for (*tier = enough; !works(); *tier = enough) {
    SLUICE_CHECK(enough < kUnlimited);
    too_little = enough;
    enough = std::min(enough * 2, kUnlimited);
  }
  while (enough - too_little > Bytes(1)) {
    *tier = too_little + (enough - too_little) / 2;
    (works() ? enough : too_little) = *tier;
  }
  return enough;
}

}  // namespace

Budgets SmallestBudgets(const PlanInput& input) {
  Budgets smallest;
  Budgets trial{kUnlimited, kUnlimited, kUnlimited};
  smallest.hbm = Smallest(input, trial, &trial.hbm);
  trial.hbm = std::max(input.budgets.hbm, smallest.hbm);
  smallest.pinned = Smallest(input, trial, &trial.pinned);
  trial.pinned = std::max(input.budgets.pinned, smallest.pinned);
  smallest.nvme = Smallest(input, trial, &trial.nvme);
  return smallest;
}

}  // namespace sluice::tools
