#include "offload/run/tier_memory.h"

#include "core/status.h"

namespace sluice {

BlockMap MapBlocks(const ModelLayout& layout, const Placement& placement) {
  BlockMap map;
  map.states.resize(layout.chunks().size());
  map.params.resize(layout.chunks().size());
  map.grads.resize(layout.chunks().size());
  enum Kind : uint32_t { kStates, kParams, kGrads };
  const auto add = [&map](Bytes size, Kind kind, uint32_t columns) {
    map.shapes.push_back({.size = size, .kind = kind, .columns = columns});
    return BlockIndex(static_cast<uint32_t>(map.shapes.size() - 1));
  };
  for (size_t c = 0; c < layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = layout.chunks()[c];
    if (placement.state_home[c] == Tier::kNvme)
      map.states[c] =
          add(chunk.state_bytes(), kStates, layout.format()->columns(chunk.copy_type()));
    if (placement.param_home[chunk.unit.value()] == Tier::kNvme) {
      map.params[c] = add(chunk.param_bytes(), kParams, 1);
    }
    if (placement.grad_home[c] == Tier::kNvme && chunk.grad_bytes() > Bytes(0))
      map.grads[c] = add(chunk.grad_bytes(), kGrads, 1);
  }
  return map;
}

namespace {

absl::StatusOr<BufferPool> CarvePool(Arena* arena, Bytes size, int count, Bytes alignment) {
  if (count == 0) return BufferPool();
  SLUICE_ASSIGN_OR_RETURN(const MemoryView view, arena->Carve(size * count, alignment));
  return BufferPool(view, size);
}

}  // namespace

absl::StatusOr<TierMemory> TierMemory::Make(const ModelLayout& layout, const Placement& placement,
                                            Device* device, MemoryResource* host) {
  TierMemory memory;
  SLUICE_ASSIGN_OR_RETURN(memory.hbm, device->MakeHbmArena(placement.hbm()));
  SLUICE_ASSIGN_OR_RETURN(memory.pinned, Arena::Create(host, placement.pinned()));
  // First, so that nothing is lost to their alignment, and they lie on huge pages if anything does.
  SLUICE_ASSIGN_OR_RETURN(memory.state_buffers,
                          CarvePool(&memory.pinned, placement.state_buffer_bytes,
                                    placement.state_buffers, placement.io_alignment));
  SLUICE_ASSIGN_OR_RETURN(memory.param_buffers,
                          CarvePool(&memory.pinned, placement.param_buffer_bytes,
                                    placement.param_buffers, placement.io_alignment));
  SLUICE_ASSIGN_OR_RETURN(memory.grad_buffers,
                          CarvePool(&memory.pinned, placement.grad_buffer_bytes,
                                    placement.grad_buffers, placement.io_alignment));
  memory.pools = memory.pinned.memory().first(memory.pinned.carved().size());
  Arena* const exchange = placement.hbm_in_place ? &memory.pinned : &memory.hbm;
  if (placement.staging_buffer_bytes > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(
        memory.staging_buffers,
        CarvePool(exchange, placement.staging_buffer_bytes, kStagingBuffers, kSlotAlignment));
  }
  if (placement.received_buffer_bytes > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(
        memory.received_buffers,
        CarvePool(exchange, placement.received_buffer_bytes, kExchanges, kSlotAlignment));
  }
  if (placement.served_bytes > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(memory.served_shard,
                            exchange->Carve(placement.served_bytes, kSlotAlignment));
  }
  memory.blocks = MapBlocks(layout, placement);
  for (size_t u = 0; u < layout.units().size(); ++u) {
    std::byte* home = nullptr;
    if (placement.param_home[u] != Tier::kNvme) {
      const bool in_hbm = placement.param_home[u] == Tier::kHbm;
      Arena& arena = in_hbm ? memory.hbm : memory.pinned;
      SLUICE_ASSIGN_OR_RETURN(const MemoryView view,
                              arena.Carve(placement.home_bytes[u], kSlotAlignment));
      home = view.data();
    }
    memory.param_home.push_back(home);
    const UnitLayout& unit = layout.units()[u];
    Shift shift{.frozen_begin = unit.updated_elements};
    if (placement.IsShared(u)) {
      const ElementRange updated = unit.updated.shard(layout.sharding().rank);
      shift.updated = updated.begin;
      shift.frozen =
          unit.updated_elements + unit.frozen.shard(layout.sharding().rank).begin - updated.size();
    }
    memory.param_shift.push_back(shift);
  }
  memory.grad_home.resize(layout.chunks().size(), nullptr);
  for (const GradStretch& stretch : GradStretches(layout, placement.grad_home)) {
    Arena& arena = stretch.tier == Tier::kHbm ? memory.hbm : memory.pinned;
    SLUICE_ASSIGN_OR_RETURN(const MemoryView view, arena.Carve(stretch.bytes, kSlotAlignment));
    const int64_t begin = layout.chunks()[stretch.first_chunk].offset;
    for (uint32_t c = stretch.first_chunk; c < stretch.first_chunk + stretch.chunk_count; ++c) {
      const ChunkLayout& chunk = layout.chunks()[c];
      memory.grad_home[c] = view.data() + (chunk.offset - begin) * SizeOf(chunk.types.grad);
    }
  }
  for (size_t c = 0; c < layout.chunks().size(); ++c) {
    std::byte* home = nullptr;
    if (placement.state_home[c] != Tier::kNvme) {
      Arena& arena = placement.state_home[c] == Tier::kHbm ? memory.hbm : memory.pinned;
      const Bytes bytes = RoundUp(layout.chunks()[c].state_bytes(), kSlotAlignment);
      SLUICE_ASSIGN_OR_RETURN(const MemoryView view, arena.Carve(bytes, kSlotAlignment));
      home = view.data();
    }
    memory.state_home.push_back(home);
  }
  if (placement.sums_hbm > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(const MemoryView there,
                            memory.hbm.Carve(placement.sums_hbm, kSlotAlignment));
    memory.sums_hbm = there.data();
  }
  if (placement.sums > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(const MemoryView here,
                            memory.pinned.Carve(placement.sums, kSlotAlignment));
    memory.sums = here.data();
  }
  SLUICE_ASSIGN_OR_RETURN(memory.add_buffers, CarvePool(&memory.hbm, placement.add_buffer_bytes,
                                                        placement.add_buffers, kSlotAlignment));
  if (placement.hbm_cache > Bytes(0)) {
    SLUICE_ASSIGN_OR_RETURN(memory.hbm_cache,
                            memory.hbm.Carve(placement.hbm_cache, kSlotAlignment));
  }
  return memory;
}

}  // namespace sluice
