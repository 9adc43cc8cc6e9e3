// offload/run/host_share.h
//
// What is one rank's of a host that several ranks are on: no rank knows of the others' RAM and
// cores but by asking them, and what each takes by what it finds free is, together, more than there
// is. So before any of them takes anything, all tell what they find; and again what they need.
//
// Ranks are of one host if they run on the same kernel, whatever they call it. A limit of a cgroup
// is shared by those that are in it, cores by those that may run on them.

#ifndef SLUICE_OFFLOAD_RUN_HOST_SHARE_H_
#define SLUICE_OFFLOAD_RUN_HOST_SHARE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "core/budget.h"
#include "core/cgroup.h"
#include "core/types.h"

namespace sluice {

// What a rank finds, before any rank has taken anything. Ranks send it as it is.
struct HostView {
  static constexpr int64_t kUnknown = -1;
  static constexpr size_t kCoresMax = 1024;  // those above are taken for nobody else's

  std::array<char, 40> kernel{};                 // its boot's id; empty: not known
  std::array<uint64_t, 2> cgroup{};              // device and inode of the limit's file; 0: none
  int64_t machine_left = kUnknown;               // bytes of RAM
  int64_t cgroup_left = kUnknown;                // below that limit
  int64_t need = 0;                              // bytes of RAM that the rank is about to take
  std::array<uint64_t, kCoresMax / 64> cores{};  // a bit for each that it may run on
};

// `limits`: none if they can't be read.
HostView LookAtHost(const FileReader& files, std::span<const int> cores,
                    const absl::StatusOr<MemoryLimits>& limits);

struct HostShare {
  uint32_t local_rank = 0;  // of those of this host, in the order of ranks
  uint32_t local_ranks = 1;
  double cores = 1;  // how much of the cores that this rank may run on is its own
  // RAM it may take where nobody said how much; none: as much as it finds.
  std::optional<Bytes> ram;
};

// Equal shares: of the least that any of those who share it finds.
HostShare ShareOf(std::span<const HostView> by_rank, Rank rank);
// `mine`, as `rank` found it, less what the other ranks of the host need.
MemoryLimits WithoutOthers(std::span<const HostView> by_rank, Rank rank, MemoryLimits mine);

// Tells all ranks of `own`, and returns what each tells. Blocks until the last has come. Errors:
// the communicator's.
absl::StatusOr<std::vector<HostView>> ExchangeViews(const HostView& own, Communicator* ranks);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_HOST_SHARE_H_
