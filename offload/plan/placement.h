// offload/plan/placement.h
//
// What lives where: a pure function from the model's layout and the three budgets to a home for
// every unit's parameters and every chunk's states and gradients, and to the exact size of each
// tier's arena. It decides nothing about time.
//
// HBM: if all parameters fit, all live there; then, where the device may update, states, each chunk
// with its gradients, in forward order as far as they fit. Otherwise small units, and those that
// were asked to stay, live there for good, and what is left of the budget is a cache that the
// schedule moves the other units through. Pinned RAM: the buffers that movements need, gradients,
// then the parameters that don't live in HBM, then states, all in forward order: what a step needs
// first stays nearest, and gradients of the last units, which are there the longest, are the first
// to go. A byte of parameters is moved up to three times a step, a byte of states twice, and a byte
// of gradients twice in every micro-step. NVMe: the rest; gradients only where states may go there
// too, and only when they don't all fit. Frozen tensors need no states and no gradients, lent ones
// no room for parameters.
//
// Where ranks share parameters (layout.h), a unit that does not live in HBM for good has its home,
// this rank's shard, in HBM if parameters may go nowhere else, and in pinned RAM and on NVMe
// otherwise; all of it comes into the cache, from all ranks, whenever it is needed.
//
// Where states may not leave HBM, everything lives there, gradients too, and the update runs there;
// pinned memory then holds what values pass through on their way in and out.

#ifndef SLUICE_OFFLOAD_PLAN_PLACEMENT_H_
#define SLUICE_OFFLOAD_PLAN_PLACEMENT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "offload/plan/layout.h"

namespace sluice {

enum class Tier : uint8_t { kHbm = 0, kPinned = 1, kNvme = 2 };

struct Budgets {
  Bytes hbm;
  Bytes pinned;
  Bytes nvme;
};

inline constexpr Bytes kNoLimit = Bytes(INT64_MAX / 2);  // of a budget
inline constexpr Bytes kSlotAlignment = Bytes(4096);  // of units, buffers and homes in every arena
inline constexpr int kBuffersMin = 2;
// Of gradients among ranks: two that are exchanged while another is collected.
inline constexpr int kExchanges = 2;
inline constexpr int kStagingBuffers = kExchanges + 1;

// How gradients are added up over ranks: in the order of ranks, in fp32, so that the bits depend on
// nothing else; or as the communicator's own reduce-scatter does it, in the gradients' type.
enum class ReductionMode : uint8_t { kOrdered = 0, kLibrary = 1 };
constexpr const char* Name(ReductionMode mode) {
  return mode == ReductionMode::kOrdered ? "ordered" : "library";
}

// Of chunks whose states stay, how many are updated at a time: no worker waits for the next.
constexpr int ResidentUpdates(int workers) { return 2 * workers + 2; }

struct PlacementOptions {
  Tier lowest_param_tier = Tier::kNvme;
  Tier lowest_state_tier = Tier::kNvme;  // kHbm: states and gradients live there, all of them
  // kHbm: as many as fit beside all parameters live there, unless they are lent. Never above the
  // lowest.
  Tier highest_state_tier = Tier::kPinned;
  int64_t resident_elements_max = 16384;  // units of at most so many elements live in HBM for good
  int state_buffers =
      32;  // wanted for moving states, if any state is on NVMe; at least 2 are needed
  int param_buffers = 24;  // wanted for moving parameters, if a copy passes through; at least 2
  int grad_buffers = 24;   // wanted for moving gradients, if any are on NVMe; at least 2
  // Of transfers to and from the drives: a power of two, from kSlotAlignment to 2 MiB.
  Bytes io_alignment = kSlotAlignment;
  // HBM is memory of the host, behind no link: updated parameters are written in place.
  bool hbm_in_place = false;
  // Grains. A chunk is what is transferred. A copy of parameters into HBM is of so many bytes at
  // least, or of a unit, where the budget has room for that; a task of an update is of so many
  // elements at most, a multiple of kPieceElements, so that what it touches stays in a core's L2:
  // 16 bytes an element, in bf16.
  Bytes copy_bytes = MiB(1);
  int64_t task_elements = 3 * kPieceElements;
  int workers = 1;  // that update
  ReductionMode reduction = ReductionMode::kOrdered;
};

// What pinned memory must hold whatever the budgets: the smallest pinned budget, and of what it is.
struct LeastPinned {
  Bytes gradients;  // that may not go to NVMe, or are less than what moves them; and the sums of
                    // their squares, where the device may make them
  Bytes buffers;    // two for moving states, two for parameters, and two for gradients; and, where
                    // HBM is in place, what gradients pass through among ranks
  Bytes states;     // that may not go to NVMe
  Bytes params;     // likewise, of those that do not live in HBM

  Bytes total() const { return gradients + buffers + states + params; }
  // "RAM must hold at least 14 MiB: 10 MiB of gradients and 4 MiB of buffers".
  std::string Sentence() const;
};

// First the homes and the numbers of buffers, then what follows from them (SumUp). Any mix of homes
// can be carried out in which states that live in HBM have their gradients and parameters there,
// and no other gradients are there.
struct Placement {
  std::vector<Tier> param_home;  // by unit
  std::vector<bool> shared;      // by unit: its home holds this rank's shard; empty: none's
  std::vector<Tier> state_home;  // by chunk
  std::vector<Tier> grad_home;   // by chunk; of frozen ones it says nothing
  Bytes hbm_cache;               // the room that units which don't live in HBM are moved through
  Bytes io_alignment;            // of buffers that drives use, and of extents
  int state_buffers = 0;
  int param_buffers = 0;
  int grad_buffers = 0;
  Bytes copy_room;  // that each parameter buffer has at least, if copies into HBM are to be larger
  bool hbm_in_place = false;
  bool shards_may_go = false;  // parameters that ranks share may live where they can't be sent from
  bool device_sums = false;    // squares may be summed in HBM, even if none are there now
  ReductionMode reduction = ReductionMode::kOrdered;
  int64_t task_elements = 0;

  std::vector<Bytes> slot_bytes;  // by unit: room in HBM for compute, aligned
  std::vector<Bytes> home_bytes;  // by unit: what this rank keeps of its parameters, aligned
  Bytes hbm_fixed;                // units that live in HBM, and shards
  Bytes states_hbm;
  Bytes states_pinned;
  Bytes states_nvme;  // extents
  Bytes params_pinned;
  Bytes params_nvme;
  Bytes grads_hbm;
  Bytes grads_pinned;
  Bytes grads_nvme;
  Bytes sums;                // of squares, in pinned memory, if the device may make some
  Bytes sums_hbm;            // as many there, if gradients live there
  Bytes state_buffer_bytes;  // of one
  Bytes param_buffer_bytes;  // of the largest chunk, or several
  Bytes grad_buffer_bytes;
  // Among ranks: of the largest unit, its gradients, and what others have of this rank's shard,
  // which only an ordered sum asks for.
  Bytes staging_buffer_bytes;
  Bytes received_buffer_bytes;
  Bytes served_bytes;      // this rank's largest shard of parameters, if any may have to be brought
  Bytes add_buffer_bytes;  // in HBM: what is added to gradients there passes through
  int add_buffers = 0;

  LeastPinned least_pinned;

  Bytes hbm() const {
    return hbm_fixed + hbm_cache + states_hbm + grads_hbm + sums_hbm +
           add_buffer_bytes * add_buffers + exchange(Tier::kHbm);
  }
  Bytes buffers() const {  // in pinned memory
    return state_buffer_bytes * state_buffers + param_buffer_bytes * param_buffers +
           grad_buffer_bytes * grad_buffers + exchange(Tier::kPinned);
  }
  // Ranks exchange where compute is; where that is in place, all of it counts as pinned memory.
  Tier exchange_tier() const { return hbm_in_place ? Tier::kPinned : Tier::kHbm; }
  Bytes exchange(Tier tier) const {
    if (tier != exchange_tier()) return Bytes(0);
    return staging_buffer_bytes * kStagingBuffers + received_buffer_bytes * kExchanges +
           served_bytes;
  }
  Bytes pinned() const { return grads_pinned + sums + params_pinned + states_pinned + buffers(); }
  Bytes nvme() const { return states_nvme + params_nvme + grads_nvme; }
  bool IsShared(size_t unit) const { return !shared.empty() && shared[unit]; }
  // Whether ranks can send this rank's shard of the unit from its home. Else it is brought first.
  bool SentFromHome(size_t unit) const {
    return param_home[unit] == Tier::kHbm || (param_home[unit] == Tier::kPinned && hbm_in_place);
  }
  // Whether compute finds the unit at its home, and never elsewhere.
  bool resident(size_t unit) const { return param_home[unit] == Tier::kHbm && !IsShared(unit); }
  // Whether the chunk's parameters cross a link when they were updated.
  bool CopiesUpdate(const ModelLayout& layout, size_t chunk) const {
    const ChunkLayout& c = layout.chunks()[chunk];
    return c.keep == Keep::kAll && param_home[c.unit.value()] == Tier::kHbm &&
           state_home[chunk] != Tier::kHbm && !hbm_in_place;
  }
};

// What the sums of squares of all cells take.
Bytes SquareSumsOf(const ModelLayout& layout);

// Sets every other field of `placement` from its homes and numbers of buffers, but least_pinned.
void SumUp(const ModelLayout& layout, Placement* placement);

// Of these, the rooms that ranks exchange through, for which homes need not be known.
void SumUpExchange(const ModelLayout& layout, Placement* placement);

// Chunks of a unit, one after another, whose gradients lie together in HBM or in pinned memory.
struct GradStretch {
  Tier tier;
  uint32_t first_chunk;
  uint32_t chunk_count;
  Bytes bytes;  // aligned
};
std::vector<GradStretch> GradStretches(const ModelLayout& layout,
                                       const std::vector<Tier>& grad_home);

// Errors: ResourceExhausted naming the tier, the smallest budget that would work, and what else
// could be changed.
absl::StatusOr<Placement> MakePlacement(const ModelLayout& layout, const Budgets& budgets,
                                        const PlacementOptions& options);

// The smallest budget that an error of MakePlacement names. Nothing of another error.
std::optional<Bytes> SmallestThatWould(const absl::Status& status);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_PLACEMENT_H_
