// offload/run/host_share.h
//
// What is one rank's of a host that several ranks are on: no rank knows of the others' RAM and
// cores but by asking them, and what each takes by what it finds free is, together, more than there
// is. So before any of them takes anything, all tell what they find; and again what they need.
//
// Ranks are of one host if they run on the same kernel, whatever they call it. The tightest limit
// of RAM, and of time on cores, is shared by those for whom it is the tightest; cores by those that
// may run on them.

#ifndef SLUICE_OFFLOAD_RUN_HOST_SHARE_H_
#define SLUICE_OFFLOAD_RUN_HOST_SHARE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "core/budget.h"
#include "core/cgroup.h"
#include "core/topology.h"
#include "core/types.h"

namespace sluice {

// What a rank finds while no rank has taken anything. Ranks send it as it is.
struct HostView {
  static constexpr int64_t kUnknown = -1;
  static constexpr size_t kCoresMax = 1024;  // those above count as these do, on average
  using File = std::array<uint64_t, 2>;  // device and inode: paths differ in containers; 0: none

  std::array<char, 40> kernel{};                 // its boot's id; empty: not known
  File memory_limit{};                           // the tightest
  File quota{};                                  // likewise, of cores
  int64_t machine_left = kUnknown;               // bytes of RAM
  int64_t cgroup_left = kUnknown;                // below that limit
  int64_t need = 0;                              // bytes that the rank is about to take
  int64_t hbm_left = kUnknown;                   // bytes of its GPU
  int64_t exchanges = 0;                         // an ExchangePlace
  int64_t reduction = 0;                         // a ReductionMode
  std::array<uint64_t, kCoresMax / 64> cores{};  // a bit for each that it may run on
};
static_assert(std::has_unique_object_representations_v<HostView>);

// `limits`: an error where they can't be read.
HostView LookAtHost(const FileReader& files, const AllowedCores& allowed,
                    const absl::StatusOr<MemoryLimits>& limits);

struct HostShare {
  uint32_t local_rank = 0;  // of those of this host, in the order of ranks
  uint32_t local_ranks = 1;
  double cores = 1;  // how much of the cores that this rank may run on is its own
  double quota = 1;  // and of the quota
  // RAM it may take where nobody said how much; none: as much as it finds.
  std::optional<Bytes> ram;
  // HBM it may count on where nobody said how much: what every rank's GPU has, on whichever host,
  // so that all place units alike. None: no rank has a GPU.
  std::optional<Bytes> hbm;
};

// Where the rank computes, and so exchanges: all must do so in one way.
enum class ExchangePlace : int64_t { kInPlace, kBehindLink, kOnGpu };

// Errors, on all ranks: FailedPrecondition naming two ranks that compute elsewhere, or add up
// gradients in another way. `reason`: why this one computes where it does.
absl::Status CheckSameExchange(std::span<const HostView> by_rank, Rank rank,
                               const std::string& reason);

// Equal shares: of the least that any of those who share it finds.
HostShare ShareOf(std::span<const HostView> by_rank, Rank rank);
// What `rank` may take at most, in the place of `mine`, which it has found: what the needs of the
// other ranks of the host leave of it, or its equal share, if that is more. So if their needs are
// together too much, those are refused who want more than their share.
MemoryLimits LimitsAmong(std::span<const HostView> by_rank, Rank rank, MemoryLimits mine);

// Tells all ranks of `own`, and returns what each tells. Blocks until the last has come. Errors:
// the communicator's.
absl::StatusOr<std::vector<HostView>> ExchangeViews(const HostView& own, Communicator* ranks);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_HOST_SHARE_H_
