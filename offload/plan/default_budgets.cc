#include "offload/plan/default_budgets.h"

#include <algorithm>

#include "core/status.h"

namespace sluice {

namespace {

// What HBM must hold if everything lives there.
Bytes AllInHbm(const ModelLayout& layout, const PlacementOptions& options) {
  const absl::StatusOr<Placement> placement =
      MakePlacement(layout, {kNoLimit, kNoLimit, kNoLimit}, options);
  SLUICE_CHECK(placement.ok());
  return placement->hbm();
}

}  // namespace

Budgets DefaultBudgets(const Budgets& given, const ModelLayout& layout,
                       const PlacementOptions& options, Bytes available,
                       std::optional<Bytes> gpu_available) {
  Bytes params, grads_and_states, largest;
  for (const UnitLayout& unit : layout.units()) {
    params += RoundUp(unit.param_bytes(), kSlotAlignment);
    largest = std::max(largest, RoundUp(unit.param_bytes(), kSlotAlignment));
    grads_and_states += RoundUp(Bytes(unit.updated_elements * 4), kSlotAlignment);
  }
  for (const ChunkLayout& chunk : layout.chunks())
    grads_and_states += RoundUp(chunk.state_bytes(), kSlotAlignment);

  // Shards, and two units that are gathered, whatever the pads.
  if (layout.sharding().params) params += largest + largest;
  Placement exchange;
  exchange.hbm_in_place = options.hbm_in_place;
  exchange.reduction = options.reduction;
  exchange.shards_may_go = layout.sharding().params;
  SumUpExchange(layout, &exchange);
  params += exchange.exchange(Tier::kHbm);

  Budgets budgets = given;
  if (budgets.hbm < Bytes(0) && options.lowest_state_tier == Tier::kHbm) {
    budgets.hbm = std::min(AllInHbm(layout, options), gpu_available.value_or(available / 4));
  } else if (budgets.hbm < Bytes(0)) {
    budgets.hbm = std::min(params, gpu_available ? *gpu_available / 2 : available / 4);
  }
  if (budgets.pinned < Bytes(0)) {
    const Bytes reserve =
        std::max(MiB(256), available / 8);  // for the process: activations, PyTorch, code
    const bool all_in_hbm = options.lowest_state_tier == Tier::kHbm;
    const Bytes hbm_used = all_in_hbm ? budgets.hbm : std::min(budgets.hbm, params);
    const Bytes hbm_here = gpu_available ? Bytes(0) : hbm_used;
    const Bytes most = std::max(Bytes(0), available - hbm_here - reserve);
    // Never more than all of it could use: gradients and states, parameters, and movement buffers.
    budgets.pinned = std::min(most, grads_and_states + params + MiB(256));
  }
  if (budgets.nvme < Bytes(0)) budgets.nvme = kNoLimit;
  return budgets;
}

}  // namespace sluice
