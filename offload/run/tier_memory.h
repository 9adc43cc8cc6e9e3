// offload/run/tier_memory.h
//
// The memory of a runtime: one arena per tier, carved once as the placement says, and the numbers
// of the blocks that live on NVMe. After Make, addresses never change; the pools are the control
// thread's, the rest is read-only.

#ifndef SLUICE_OFFLOAD_RUN_TIER_MEMORY_H_
#define SLUICE_OFFLOAD_RUN_TIER_MEMORY_H_

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/device.h"
#include "core/pool.h"
#include "nvme/segments.h"
#include "offload/plan/layout.h"
#include "offload/plan/placement.h"

namespace sluice {

// Which chunk's states, parameters and gradients are which block of the block store, and how large
// the blocks are. Each of the three is a kind of its own, and spread over all drives.
struct BlockMap {
  std::vector<std::optional<BlockIndex>> states;  // by chunk
  std::vector<std::optional<BlockIndex>> params;  // by chunk
  std::vector<std::optional<BlockIndex>> grads;   // by chunk
  std::vector<BlockShape> shapes;                 // by block
};
BlockMap MapBlocks(const ModelLayout& layout, const Placement& placement);

struct TierMemory {
  Arena hbm;
  Arena pinned;
  MemoryView pools;  // of the pinned arena, its beginning: what drives read and write
  MemoryView hbm_cache;
  std::vector<std::byte*> param_home;  // by unit: in HBM or pinned memory; else not to be used
  // By unit, how far from its place in the unit something lies at home, in elements: of what is
  // updated, and of what is frozen. Where the home is a shard, that lies there without gaps.
  struct Shift {
    int64_t frozen_begin = 0;  // in the unit
    int64_t updated = 0;
    int64_t frozen = 0;
  };
  std::vector<Shift> param_shift;
  std::vector<std::byte*> state_home;  // by chunk: the same
  std::vector<std::byte*> grad_home;   // by chunk: the same
  std::byte* sums_hbm = nullptr;       // the cells' sums, if gradients live in HBM
  std::byte* sums = nullptr;           // in pinned memory, if they may
  BufferPool state_buffers;
  BufferPool param_buffers;
  BufferPool grad_buffers;  // that gradients pass through which live on NVMe
  // Among ranks, in HBM, or in pinned memory where that is the same:
  BufferPool staging_buffers;   // this rank's gradients of a unit
  BufferPool received_buffers;  // and the others' of this rank's shard, for an ordered sum
  MemoryView served_shard;      // of a unit, while it is sent to ranks that need it
  BufferPool add_buffers;       // in HBM: what is added to gradients that live there passes through
  BlockMap blocks;

  // Takes both arenas. Errors: ResourceExhausted from the device or the memory resource.
  static absl::StatusOr<TierMemory> Make(const ModelLayout& layout, const Placement& placement,
                                         Device* device, MemoryResource* host);

  // Where the chunk's parameters lie, unless they live on NVMe.
  std::byte* ParamsOf(const ChunkLayout& chunk) const {
    return param_home[chunk.unit.value()] + PlaceAtHome(chunk) * chunk.types.param.size();
  }
  // Elements from where the unit's home begins, or would.
  int64_t PlaceAtHome(const ChunkLayout& chunk) const {
    const Shift& shift = param_shift[chunk.unit.value()];
    return chunk.offset - (chunk.offset < shift.frozen_begin ? shift.updated : shift.frozen);
  }
};

// A chunk's states at `states`, the copies of its parameters at `params`.
inline ChunkStates StatesAt(const ChunkLayout& chunk, std::byte* states, std::byte* params) {
  return {
      .data = states, .capacity = chunk.capacity, .param = params, .param_type = chunk.copy_type()};
}

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_TIER_MEMORY_H_
