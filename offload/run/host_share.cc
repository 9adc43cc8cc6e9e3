#include "offload/run/host_share.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <memory>

#include "comm/op_rules.h"
#include "comm/run_op.h"
#include "core/status.h"

namespace sluice {

namespace {

bool SameHost(const HostView& a, const HostView& b) {
  return a.kernel.front() != 0 && a.kernel == b.kernel;
}
bool SameCgroup(const HostView& a, const HostView& b) {
  return SameHost(a, b) && a.cgroup.back() != 0 && a.cgroup == b.cgroup;
}

// An equal share of the least that the ranks in `same` find there.
template <typename Same>
std::optional<Bytes> ShareOfLeft(std::span<const HostView> by_rank, const HostView& own,
                                 int64_t HostView::*left, Same&& same) {
  if (own.*left == HostView::kUnknown) return std::nullopt;
  int64_t least = own.*left, ranks = 0;
  for (const HostView& other : by_rank) {
    if (&other != &own && !same(own, other)) continue;
    ++ranks;
    if (other.*left != HostView::kUnknown) least = std::min(least, other.*left);
  }
  return Bytes(least / ranks);
}

}  // namespace

HostView LookAtHost(const FileReader& files, std::span<const int> cores,
                    const absl::StatusOr<MemoryLimits>& limits) {
  HostView view;
  const absl::StatusOr<std::string> boot = files("/proc/sys/kernel/random/boot_id");
  if (boot.ok())
    std::copy_n(boot->begin(), std::min(boot->size(), view.kernel.size()), &view.kernel[0]);
  for (const int core : cores) {
    const auto index = static_cast<size_t>(core);
    if (index < HostView::kCoresMax) view.cores[index / 64] |= uint64_t{1} << (index % 64);
  }
  if (!limits.ok()) return view;
  view.machine_left = limits->machine_available.value();
  if (!limits->cgroup_limit) return view;
  // Not its path: containers show the same one for different cgroups.
  struct stat status {};
  if (stat(limits->cgroup_path.c_str(), &status) == 0)
    view.cgroup = {uint64_t{status.st_dev}, uint64_t{status.st_ino}};
  view.cgroup_left = std::max(Bytes(0), *limits->cgroup_limit - limits->cgroup_used).value();
  return view;
}

HostShare ShareOf(std::span<const HostView> by_rank, Rank rank) {
  const HostView& own = by_rank[rank.value()];
  HostShare share;
  double cores = 0, mine = 0;
  std::vector<const HostView*> others;
  for (uint32_t r = 0; r < by_rank.size(); ++r) {
    if (r == rank.value() || !SameHost(own, by_rank[r])) continue;
    others.push_back(&by_rank[r]);
    ++share.local_ranks;
    share.local_rank += r < rank.value() ? 1 : 0;
  }
  for (size_t w = 0; w < own.cores.size(); ++w) {
    for (uint64_t left = own.cores[w]; left != 0; left &= left - 1) {
      const uint64_t core = left & -left;
      const auto runs_there = [&](const HostView* other) { return (other->cores[w] & core) != 0; };
      cores += 1;
      mine += 1.0 / static_cast<double>(1 + std::ranges::count_if(others, runs_there));
    }
  }
  if (cores > 0) share.cores = mine / cores;
  share.ram = ShareOfLeft(by_rank, own, &HostView::machine_left, SameHost);
  const std::optional<Bytes> below_limit =
      ShareOfLeft(by_rank, own, &HostView::cgroup_left, SameCgroup);
  if (below_limit && (!share.ram || *below_limit < *share.ram)) share.ram = below_limit;
  return share;
}

MemoryLimits WithoutOthers(std::span<const HostView> by_rank, Rank rank, MemoryLimits mine) {
  const HostView& own = by_rank[rank.value()];
  for (const HostView& other : by_rank) {
    if (&other == &own || !SameHost(own, other)) continue;
    const Bytes need(other.need);
    mine.machine_available = std::max(Bytes(0), mine.machine_available - need);
    if (mine.cgroup_limit && SameCgroup(own, other)) mine.cgroup_used += need;
  }
  return mine;
}

absl::StatusOr<std::vector<HostView>> ExchangeViews(const HostView& own, Communicator* ranks) {
  auto all = std::make_unique<std::vector<HostView>>(ranks->ranks());
  (*all)[ranks->rank().value()] = own;
  std::vector<MemoryView> receive;
  for (HostView& view : *all) receive.emplace_back(std::as_writable_bytes(std::span(&view, 1)));
  const ConstMemoryView send = receive[ranks->rank().value()];
  const std::vector<uint32_t> ends = EndsOfOneEach(ranks->ranks());
  constexpr uint64_t kOfHosts = uint64_t{2} << 32;
  CommOp op;
  op.kind = CommKind::kAllGather;
  op.tag = kOfHosts;
  op.send = {std::span(&send, 1), {}};
  op.receive = {receive, ends};
  absl::Status status = RunOp(&op, ranks);
  if (op.memory_lost) static_cast<void>(all.release());  // somebody may write there at any time
  if (!status.ok()) return Annotate(status, "what the ranks find of their hosts");
  return *all;
}

}  // namespace sluice
