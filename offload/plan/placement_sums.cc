// What follows from the homes of a placement and its numbers of buffers.

#include <algorithm>
#include <vector>

#include "offload/plan/placement.h"

namespace sluice {

Bytes SquareSumsOf(const ModelLayout& layout) {
  return RoundUp(Bytes(layout.cell_count() * static_cast<int64_t>(sizeof(double))), kSlotAlignment);
}

std::vector<GradStretch> GradStretches(const ModelLayout& layout,
                                       const std::vector<Tier>& grad_home) {
  std::vector<GradStretch> stretches;
  const auto of = [&layout](uint32_t c) -> const ChunkLayout& { return layout.chunks()[c]; };
  for (uint32_t c = 0; c < grad_home.size(); ++c) {
    if (grad_home[c] == Tier::kNvme || of(c).grad_bytes() == Bytes(0)) continue;
    GradStretch stretch{.tier = grad_home[c], .first_chunk = c, .chunk_count = 1, .bytes = {}};
    while (c + 1 < grad_home.size() && grad_home[c + 1] == stretch.tier &&
           of(c + 1).unit == of(c).unit && of(c + 1).grad_bytes() > Bytes(0)) {
      ++c;
      ++stretch.chunk_count;
    }
    const int64_t elements = of(c).offset + of(c).capacity - of(stretch.first_chunk).offset;
    stretch.bytes = RoundUp(Bytes(elements * SizeOf(of(c).types.grad)), kSlotAlignment);
    stretches.push_back(stretch);
  }
  return stretches;
}

namespace {

void SumUpUnits(const ModelLayout& layout, Placement* p) {
  p->slot_bytes.clear();
  p->home_bytes.clear();
  p->hbm_fixed = p->params_pinned = Bytes(0);
  for (size_t u = 0; u < layout.units().size(); ++u) {
    p->slot_bytes.push_back(RoundUp(layout.units()[u].param_bytes(), kSlotAlignment));
    const UnitLayout& unit = layout.units()[u];
    p->home_bytes.push_back(p->IsShared(u)
                                ? RoundUp(unit.shard_bytes(layout.sharding().rank), kSlotAlignment)
                                : p->slot_bytes.back());
    if (p->param_home[u] == Tier::kHbm) p->hbm_fixed += p->home_bytes[u];
    if (p->param_home[u] == Tier::kPinned) p->params_pinned += p->home_bytes[u];
  }
}

}  // namespace

void SumUpExchange(const ModelLayout& layout, Placement* p) {
  p->staging_buffer_bytes = p->received_buffer_bytes = p->served_bytes = Bytes(0);
  const Sharding& sharding = layout.sharding();
  if (sharding.ranks == 1) return;
  for (const UnitLayout& unit : layout.units()) {
    if (p->shards_may_go) {
      p->served_bytes =
          std::max(p->served_bytes, RoundUp(unit.shard_bytes(sharding.rank), kSlotAlignment));
    }
    const int64_t others = p->reduction == ReductionMode::kOrdered ? sharding.ranks - 1 : 0;
    const Bytes received =
        Bytes(unit.updated.shard(sharding.rank).size() * others * SizeOf(unit.types.grad));
    p->staging_buffer_bytes =
        std::max(p->staging_buffer_bytes, RoundUp(unit.grad_bytes(), kSlotAlignment));
    p->received_buffer_bytes =
        std::max(p->received_buffer_bytes, RoundUp(received, kSlotAlignment));
  }
  // Of ranks that have little, as large as a buffer must be.
  if (p->staging_buffer_bytes > Bytes(0) && p->reduction == ReductionMode::kOrdered)
    p->received_buffer_bytes = std::max(p->received_buffer_bytes, kSlotAlignment);
}

void SumUp(const ModelLayout& layout, Placement* p) {
  SumUpUnits(layout, p);
  SumUpExchange(layout, p);
  p->states_hbm = p->states_pinned = p->states_nvme = Bytes(0);
  p->params_nvme = p->grads_nvme = Bytes(0);
  p->state_buffer_bytes = Bytes(0);
  p->param_buffer_bytes = p->copy_room;
  p->grad_buffer_bytes = p->add_buffer_bytes = Bytes(0);
  for (size_t c = 0; c < layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = layout.chunks()[c];
    const Bytes states = RoundUp(chunk.state_bytes(), p->io_alignment);
    const Bytes params = RoundUp(chunk.param_bytes(), p->io_alignment);
    const Bytes grads = RoundUp(chunk.grad_bytes(), p->io_alignment);
    // Values of states in HBM, and gradients, pass through the same buffers.
    p->state_buffer_bytes = std::max(p->state_buffer_bytes, states);
    p->param_buffer_bytes = std::max(p->param_buffer_bytes, params);
    p->grad_buffer_bytes = std::max(p->grad_buffer_bytes, grads);
    if (p->state_home[c] == Tier::kNvme) {
      p->states_nvme += states;
    } else {
      (p->state_home[c] == Tier::kHbm ? p->states_hbm : p->states_pinned) +=
          RoundUp(chunk.state_bytes(), kSlotAlignment);
    }
    if (p->param_home[chunk.unit.value()] == Tier::kNvme) p->params_nvme += params;
    if (p->grad_home[c] == Tier::kNvme) p->grads_nvme += grads;
    if (p->grad_home[c] == Tier::kHbm) {
      p->add_buffer_bytes =
          std::max(p->add_buffer_bytes, RoundUp(chunk.grad_bytes(), kSlotAlignment));
    }
  }
  p->grads_hbm = p->grads_pinned = Bytes(0);
  for (const GradStretch& stretch : GradStretches(layout, p->grad_home))
    (stretch.tier == Tier::kHbm ? p->grads_hbm : p->grads_pinned) += stretch.bytes;
  const bool any_in_hbm = std::count(p->grad_home.begin(), p->grad_home.end(), Tier::kHbm) > 0;
  p->add_buffers = any_in_hbm ? kBuffersMin : 0;
  p->sums = any_in_hbm || p->device_sums ? SquareSumsOf(layout) : Bytes(0);
  p->sums_hbm = any_in_hbm ? p->sums : Bytes(0);
}

}  // namespace sluice
