// The C ABI among several ranks: which one this is, and how it reaches the others.

#include <chrono>
#include <limits>
#include <utility>

#include "comm/comm_table.h"
#include "comm/supplied.h"
#include "core/clock.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"

namespace sluice::c_api {

namespace {

constexpr const char* kGroups[] = {"agreement", "gradients", "gathers"};  // the tables, in order

// Never destroyed: runtimes may outlive main.
const Clock* CommunicationClock() {
  static auto* clock = new SteadyClock;
  return clock;
}

absl::StatusOr<std::unique_ptr<Communicator>> CommunicatorOf(const sluice_comm_table& given,
                                                             const char* group,
                                                             const RuntimeConfig& config) {
  const Sharding& sharding = config.sharding;
  SLUICE_ASSIGN_OR_RETURN(const sluice_comm_table table, ReadStruct(&given, {}, "comm"));
  if (table.rank != sharding.rank.value() || table.ranks != sharding.ranks) {
    return absl::InvalidArgumentError(
        fmt::format("comm: the table of {} is rank {}'s of {}, but rank is {} and ranks is {}",
                    group, table.rank, table.ranks, sharding.rank.value(), sharding.ranks));
  }
  auto made =
      MakeSuppliedCommunicator(table, {.timeout = config.rank_timeout}, CommunicationClock());
  if (!made.ok()) return Annotate(made.status(), fmt::format("comm: the table of {}", group));
  return made;
}

}  // namespace

absl::Status ToSharding(const sluice_options& o, RuntimeConfig* config) {
  SLUICE_RETURN_IF_ERROR(CheckRange(o.ranks, 0, kRanksMax, "ranks"));
  const uint32_t ranks = std::max(o.ranks, 1u);
  SLUICE_RETURN_IF_ERROR(CheckRange(o.rank, 0, int64_t{ranks} - 1, "rank"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.zero_stage, 0, 3, "zero_stage"));
  config->zero_stage = o.zero_stage;
  SLUICE_RETURN_IF_ERROR(
      CheckRange(o.rank_timeout_ms, 0, std::numeric_limits<int32_t>::max(), "rank_timeout_ms"));
  if (o.rank_timeout_ms > 0) config->rank_timeout = std::chrono::milliseconds(o.rank_timeout_ms);
  config->sharding = {.rank = Rank(o.rank), .ranks = ranks};
  if (ranks == 1) return absl::OkStatus();  // which shares nothing at any stage
  config->sharding.states = o.zero_stage >= 1;
  config->sharding.params = o.zero_stage == 3;
  return absl::OkStatus();
}

absl::StatusOr<RankLinks> ToRankLinks(const sluice_options* given) {
  SLUICE_ASSIGN_OR_RETURN(const sluice_options o,
                          ReadStruct(given, SLUICE_OPTIONS_INIT, "options"));
  RuntimeConfig config;
  SLUICE_RETURN_IF_ERROR(ToSharding(o, &config));
  if (config.sharding.ranks == 1) return RankLinks();
  if (o.comm == nullptr) {
    return absl::InvalidArgumentError(fmt::format(
        "comm is NULL, but ranks is {}: give three sluice_comm_table (sluice_comm.h), each over a "
        "group of all ranks of its own: of agreement, gradients and gathers",
        o.ranks));
  }
  // An older caller's tables are shorter, and so are the steps from one to the next.
  SLUICE_RETURN_IF_ERROR(CheckStruct(o.comm, "comm"));
  RankLinks links;
  std::unique_ptr<Communicator>* const made[] = {&links.agreement, &links.gradients,
                                                 &links.gathers};
  for (size_t i = 0; i < std::size(made); ++i) {
    const auto* table = reinterpret_cast<const sluice_comm_table*>(
        reinterpret_cast<const std::byte*>(o.comm) + i * o.comm->struct_size);
    if (table->struct_size != o.comm->struct_size) {
      return absl::InvalidArgumentError(
          fmt::format("comm: the table of {}: struct_size is {}, but {} in the first", kGroups[i],
                      table->struct_size, o.comm->struct_size));
    }
    SLUICE_ASSIGN_OR_RETURN(*made[i], CommunicatorOf(*table, kGroups[i], config));
  }
  return links;
}

}  // namespace sluice::c_api
