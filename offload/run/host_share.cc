#include "offload/run/host_share.h"

#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "comm/op_rules.h"
#include "comm/run_op.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/plan/placement.h"
#include "offload/plan/ram_need.h"

namespace sluice {

namespace {

HostView::File FileAt(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return {};
  return {uint64_t{status.st_dev}, uint64_t{status.st_ino}};
}

bool SameHost(const HostView& a, const HostView& b) {
  return a.kernel.front() != 0 && a.kernel == b.kernel;
}
bool SameFile(const HostView::File& a, const HostView::File& b) { return a[1] != 0 && a == b; }
bool SameLimit(const HostView& a, const HostView& b) {
  return SameHost(a, b) && SameFile(a.memory_limit, b.memory_limit);
}

// Something that ranks share.
struct Pool {
  int64_t ranks = 0;
  int64_t least = 0;   // that any of them finds left
  int64_t others = 0;  // bytes that all but this rank take
  int64_t share() const { return least / ranks; }
};

template <typename Same>
std::optional<Pool> PoolOf(std::span<const HostView> by_rank, const HostView& own,
                           int64_t HostView::*left, Same&& same) {
  if (own.*left == HostView::kUnknown) return std::nullopt;
  Pool pool{.ranks = 1, .least = own.*left};
  for (const HostView& other : by_rank) {
    if (&other == &own || !same(own, other)) continue;
    ++pool.ranks;
    if (other.*left != HostView::kUnknown) pool.least = std::min(pool.least, other.*left);
    pool.others += (Bytes(other.need) + RamBeside(Bytes(other.need))).value();
  }
  return pool;
}

}  // namespace

HostView LookAtHost(const FileReader& files, const AllowedCores& allowed,
                    const absl::StatusOr<MemoryLimits>& limits) {
  HostView view;
  const absl::StatusOr<std::string> boot = files("/proc/sys/kernel/random/boot_id");
  if (boot.ok())
    std::copy_n(boot->begin(), std::min(boot->size(), view.kernel.size()), view.kernel.begin());
  for (const int core : allowed.cores) {
    const auto index = static_cast<size_t>(core);
    if (index < HostView::kCoresMax) view.cores[index / 64] |= uint64_t{1} << (index % 64);
  }
  if (const std::optional<CpuQuota> quota = FindCpuQuota(files)) view.quota = FileAt(quota->path);
  if (!limits.ok()) return view;
  view.machine_left = limits->machine_available.value();
  if (!limits->cgroup_limit) return view;
  view.memory_limit = FileAt(limits->cgroup_path);
  view.cgroup_left = std::max(Bytes(0), *limits->cgroup_limit - limits->cgroup_used).value();
  return view;
}

absl::Status CheckSameExchange(std::span<const HostView> by_rank, Rank rank,
                               const std::string& reason) {
  constexpr const char* kWords[] = {"on the host", "on the host behind a link", "on a GPU"};
  const auto words = [&](size_t r) { return kWords[by_rank[r].exchanges]; };
  for (size_t r = 1; r < by_rank.size(); ++r) {
    if (by_rank[r].exchanges == by_rank[0].exchanges) continue;
    return absl::FailedPreconditionError(fmt::format(
        "rank {} computes {} and rank 0 {}: all must compute on the same kind of device (rank {}: "
        "{}); name it, and the rank that lacks it says why",
        r, words(r), words(0), rank.value(), reason));
  }
  const auto mode = [&](size_t r) {
    return Name(static_cast<ReductionMode>(by_rank[r].reduction));
  };
  for (size_t r = 1; r < by_rank.size(); ++r) {
    if (by_rank[r].reduction == by_rank[0].reduction) continue;
    return absl::FailedPreconditionError(
        fmt::format("the reduction of rank {} is '{}' and that of rank 0 '{}': it must be the same "
                    "on all ranks",
                    r, mode(r), mode(0)));
  }
  return absl::OkStatus();
}

HostShare ShareOf(std::span<const HostView> by_rank, Rank rank) {
  const HostView& own = by_rank[rank.value()];
  HostShare share;
  std::vector<const HostView*> others;
  double in_quota = 1;
  for (uint32_t r = 0; r < by_rank.size(); ++r) {
    if (r == rank.value() || !SameHost(own, by_rank[r])) continue;
    others.push_back(&by_rank[r]);
    ++share.local_ranks;
    share.local_rank += r < rank.value() ? 1 : 0;
    in_quota += SameFile(own.quota, by_rank[r].quota) ? 1 : 0;
  }
  share.quota = 1 / in_quota;
  double cores = 0, mine = 0;
  for (size_t w = 0; w < own.cores.size(); ++w) {
    for (uint64_t left = own.cores[w]; left != 0; left &= left - 1) {
      const uint64_t core = left & -left;
      const auto runs_there = [&](const HostView* other) { return (other->cores[w] & core) != 0; };
      cores += 1;
      mine += 1.0 / static_cast<double>(1 + std::ranges::count_if(others, runs_there));
    }
  }
  if (cores > 0) share.cores = mine / cores;
  for (const HostView& view : by_rank) {
    if (view.hbm_left == HostView::kUnknown) continue;
    share.hbm = std::min(share.hbm.value_or(Bytes(view.hbm_left)), Bytes(view.hbm_left));
  }
  const auto of_machine = PoolOf(by_rank, own, &HostView::machine_left, SameHost);
  const auto of_cgroup = PoolOf(by_rank, own, &HostView::cgroup_left, SameLimit);
  for (const std::optional<Pool>& pool : {of_machine, of_cgroup}) {
    if (pool && (!share.ram || Bytes(pool->share()) < *share.ram)) share.ram = Bytes(pool->share());
  }
  return share;
}

MemoryLimits LimitsAmong(std::span<const HostView> by_rank, Rank rank, MemoryLimits mine) {
  const HostView& own = by_rank[rank.value()];
  const auto left = [](const Pool& pool) {
    return Bytes(std::max(pool.share(), pool.least - pool.others));
  };
  if (const auto pool = PoolOf(by_rank, own, &HostView::machine_left, SameHost))
    mine.machine_available = left(*pool);
  if (const auto pool = PoolOf(by_rank, own, &HostView::cgroup_left, SameLimit))
    mine.cgroup_used = *mine.cgroup_limit - left(*pool);
  return mine;
}

absl::StatusOr<std::vector<HostView>> ExchangeViews(const HostView& own, Communicator* ranks) {
  auto all = std::make_unique<std::vector<HostView>>(ranks->ranks());
  (*all)[ranks->rank().value()] = own;
  std::vector<MemoryView> receive;
  for (HostView& view : *all) receive.emplace_back(std::as_writable_bytes(std::span(&view, 1)));
  const ConstMemoryView send = receive[ranks->rank().value()];
  const std::vector<uint32_t> ends = EndsOfOneEach(ranks->ranks());
  constexpr uint64_t kOfHosts = uint64_t{2} << 32;  // unlike all that Agreement calls there
  CommOp op;
  op.kind = CommKind::kAllGather;
  op.tag = kOfHosts;
  op.send = {std::span(&send, 1), {}};
  op.receive = {receive, ends};
  absl::Status status = RunOp(&op, ranks);
  if (op.memory_lost) static_cast<void>(all.release());  // somebody may write there at any time
  if (!status.ok()) return Annotate(status, "what the ranks find of their hosts");
  return *std::move(all);
}

}  // namespace sluice
