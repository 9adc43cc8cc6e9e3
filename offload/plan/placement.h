// offload/plan/placement.h
//
// What lives where: a pure function from the model's layout and the three budgets to a home for
// every unit's parameters and every chunk's states, and to the exact size of each tier's arena. It
// decides nothing about time.
//
// HBM: if all parameters fit, all live there. Otherwise small units, and those that were asked to
// stay, live there for good, and what is left of the budget is a cache that the schedule moves the
// other units through. Pinned RAM:
// gradients first (they have no other home), the buffers that movements need, then the parameters
// that don't live in HBM, then states, both in forward order: what a step needs first stays
// nearest. A byte of parameters is moved up to three times a step, a byte of states twice. NVMe:
// the rest. Frozen tensors need no states and no gradients, lent ones no room for parameters.
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

inline constexpr Bytes kSlotAlignment = Bytes(4096);  // of units, buffers and homes in every arena
inline constexpr int kBuffersMin = 2;

// Of chunks whose states stay, how many are updated at a time: no worker waits for the next.
constexpr int ResidentUpdates(int workers) { return 2 * workers + 2; }

struct PlacementOptions {
  Tier lowest_param_tier = Tier::kNvme;
  Tier lowest_state_tier = Tier::kNvme;   // kHbm: states and gradients live there, all of them
  int64_t resident_elements_max = 16384;  // units of at most so many elements live in HBM for good
  int state_buffers =
      32;  // wanted for moving states, if any state is on NVMe; at least 2 are needed
  int param_buffers = 24;  // wanted for moving parameters, if a copy passes through; at least 2
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
};

// What pinned memory must hold whatever the budgets: the smallest pinned budget, and of what it is.
struct LeastPinned {
  Bytes gradients;  // or the sums of their squares, where they live in HBM
  Bytes buffers;    // two for moving states and two for parameters
  Bytes states;     // that may not go to NVMe
  Bytes params;     // likewise, of those that do not live in HBM

  Bytes total() const { return gradients + buffers + states + params; }
  // "RAM must hold at least 14 MiB: 10 MiB of gradients and 4 MiB of buffers".
  std::string Sentence() const;
};

struct Placement {
  std::vector<Tier> param_home;    // by unit
  std::vector<Tier> state_home;    // by chunk; kHbm for all or for none
  Tier grad_home = Tier::kPinned;  // or kHbm, where the states are
  std::vector<Bytes> slot_bytes;   // by unit: room in HBM, aligned
  Bytes hbm_fixed;                 // units that live in HBM
  Bytes hbm_cache;                 // the room that the others are moved through
  Bytes states_hbm;
  Bytes grads;
  Bytes sums;  // of squares, if gradients live in HBM: there, and as much in pinned memory
  Bytes grad_buffer_bytes;  // of one; in HBM, if gradients live there
  int grad_buffers = 0;
  Bytes params_pinned;
  Bytes states_pinned;
  Bytes state_buffer_bytes;  // of one
  Bytes param_buffer_bytes;  // room for several chunks, if copies into HBM are to be larger
  Bytes io_alignment;        // of both kinds of buffers, and of extents
  bool hbm_in_place = false;
  int64_t task_elements = 0;
  int state_buffers = 0;
  int param_buffers = 0;
  Bytes states_nvme;  // extents
  Bytes params_nvme;
  LeastPinned least_pinned;

  Bytes hbm() const {
    const Bytes grads_here = grad_home == Tier::kHbm ? grads + sums : Bytes(0);
    return hbm_fixed + hbm_cache + states_hbm + grads_here + grad_buffer_bytes * grad_buffers;
  }
  Bytes pinned() const {
    return (grad_home == Tier::kHbm ? sums : grads) + params_pinned + states_pinned +
           state_buffer_bytes * state_buffers + param_buffer_bytes * param_buffers;
  }
  Bytes nvme() const { return states_nvme + params_nvme; }
  // Whether the unit's updated parameters cross a link, chunk by chunk or several at a time.
  bool CopiesUpdates(const ModelLayout& layout, size_t unit) const {
    const UnitLayout& u = layout.units()[unit];
    return param_home[unit] == Tier::kHbm && grad_home != Tier::kHbm && !hbm_in_place && !u.lent &&
           u.updated_elements > 0;
  }
};

// Errors: ResourceExhausted naming the tier, the smallest budget that would work, and what else
// could be changed.
absl::StatusOr<Placement> MakePlacement(const ModelLayout& layout, const Budgets& budgets,
                                        const PlacementOptions& options);

// The smallest budget that an error of MakePlacement names. Nothing of another error.
std::optional<Bytes> SmallestThatWould(const absl::Status& status);

// Budgets for tiers that were not given one (negative): from what the machine and its cgroup have
// left, `available`, and what a GPU has, `gpu_available` (none: HBM is memory of the host). HBM: if
// all must live there, what that takes; else all parameters if they fit in half of the GPU's
// memory, or a quarter of the host's, else that share; pinned what remains of the host's after a
// reserve for the process; NVMe without limit (the free space is checked when files are made).
Budgets DefaultBudgets(const Budgets& given, const ModelLayout& layout,
                       const PlacementOptions& options, Bytes available,
                       std::optional<Bytes> gpu_available);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_PLACEMENT_H_
