// The C ABI among several ranks: which one this is, and how it reaches the others.

#include <algorithm>
#include <chrono>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/comm_table.h"
#include "comm/local_ranks.h"
#include "comm/supplied.h"
#include "core/clock.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"

namespace sluice::c_api {

namespace {

constexpr int64_t kTimeoutMaxMs = 2'000'000'000;
constexpr uint32_t kGroupsMin = 3;  // of the tables

// Never destroyed: runtimes may outlive main.
const Clock* CommunicationClock() {
  static auto* clock = new SteadyClock;
  return clock;
}

absl::StatusOr<std::unique_ptr<Communicator>> CommunicatorOf(const sluice_comm_table& first,
                                                             const sluice_comm_table& given,
                                                             const char* group,
                                                             const RuntimeConfig& config) {
  const Sharding& sharding = config.sharding;
  if (given.struct_size != first.struct_size) {
    return absl::InvalidArgumentError(
        fmt::format("comm: the table of {}: struct_size is {}, but {} in the first", group,
                    given.struct_size, first.struct_size));
  }
  SLUICE_ASSIGN_OR_RETURN(const sluice_comm_table table, ReadStruct(&given, {}, "comm"));
  if (table.rank != sharding.rank.value() || table.ranks != sharding.ranks) {
    return absl::InvalidArgumentError(
        fmt::format("comm: the table of {} is rank {}'s of {}, but rank is {} and ranks is {}",
                    group, table.rank, table.ranks, sharding.rank.value(), sharding.ranks));
  }
  // A rank that agreement has not reached doesn't come to what others have agreed on. It is the one
  // that knows whom it waits for, so it is to fail first, and tell them.
  const bool agrees = &given == &first;
  const Nanos timeout = config.rank_timeout + (agrees ? Nanos(0) : config.rank_timeout / 10);
  auto made = MakeSuppliedCommunicator(table, {.timeout = timeout}, CommunicationClock());
  if (!made.ok()) return Annotate(made.status(), fmt::format("comm: the table of {}", group));
  return made;
}

// One that no communicator was made over.
void CloseTable(const sluice_comm_table& first, const sluice_comm_table& given) {
  if (given.struct_size != first.struct_size) return;  // it is not known what it is
  const absl::StatusOr<sluice_comm_table> table = ReadStruct(&given, {}, "comm");
  if (table.ok() && table->close != nullptr) table->close(table->context);
}

}  // namespace

absl::Status ToSharding(const sluice_options& o, RuntimeConfig* config) {
  SLUICE_RETURN_IF_ERROR(CheckRange(o.ranks, 0, kRanksMax, "ranks"));
  const uint32_t ranks = std::max(o.ranks, 1u);
  SLUICE_RETURN_IF_ERROR(CheckRange(o.rank, 0, int64_t{ranks} - 1, "rank"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.zero_stage, 0, 3, "zero_stage"));
  config->zero_stage = o.zero_stage;
  SLUICE_RETURN_IF_ERROR(CheckRange(o.rank_timeout_ms, 0, kTimeoutMaxMs, "rank_timeout_ms"));
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
        "group of all ranks of its own: of agreement, gradients and gathers; or four, with values",
        o.ranks));
  }
  // An older caller's tables are shorter, and so are the steps from one to the next.
  SLUICE_RETURN_IF_ERROR(CheckStruct(o.comm, "comm"));
  const auto table = [&o](size_t i) {
    return reinterpret_cast<const sluice_comm_table*>(reinterpret_cast<const std::byte*>(o.comm) +
                                                      i * o.comm->struct_size);
  };
  RankLinks links;
  struct Group {
    const char* name;
    std::unique_ptr<Communicator>* link;
  };
  const Group all[] = {{"agreement", &links.agreement},
                       {"gradients", &links.gradients},
                       {"gathers", &links.gathers},
                       {"values", &links.values}};
  const uint32_t given_groups = o.comm_groups == 0 ? kGroupsMin : o.comm_groups;
  const absl::Status counted = CheckRange(given_groups, kGroupsMin, std::size(all), "comm_groups");
  // Of a wrong number, those that there must be hear why.
  const auto groups = std::span(all).first(counted.ok() ? given_groups : kGroupsMin);
  for (size_t i = 0; i < groups.size(); ++i) {
    auto link = CommunicatorOf(*o.comm, *table(i), groups[i].name, config);
    if (link.ok()) {
      *groups[i].link = *std::move(link);
      continue;
    }
    links.GiveUp(link.status());
    for (size_t left = i; left < groups.size(); ++left) CloseTable(*o.comm, *table(left));
    return link.status();
  }
  if (!counted.ok()) {
    links.GiveUp(counted);
    return counted;
  }
  return links;
}

namespace {

// Never destroyed: see Runtimes.
Handles<LocalRanks>& Listeners() {
  static auto* listeners = new Handles<LocalRanks>('L');
  return *listeners;
}

absl::Status LocalConnect(uint64_t listener, const char* addresses, uint32_t groups,
                          int32_t timeout_ms, sluice_comm_table* tables) {
  SLUICE_ASSIGN_OR_RETURN(const auto ranks, Listeners().Remove(listener, "listener"));
  SLUICE_RETURN_IF_ERROR(NotNull(addresses, "addresses"));
  SLUICE_RETURN_IF_ERROR(CheckStruct(tables, "tables"));
  SLUICE_RETURN_IF_ERROR(CheckRange(groups, 1, 64, "groups"));
  SLUICE_RETURN_IF_ERROR(CheckRange(timeout_ms, 1, INT32_MAX, "timeout_ms"));
  std::vector<LocalRanks::Address> by_rank(ranks->ranks());
  for (size_t r = 0; r < by_rank.size(); ++r)
    std::copy_n(addresses + r * by_rank[r].size(), by_rank[r].size(), by_rank[r].begin());
  SLUICE_ASSIGN_OR_RETURN(const auto made,
                          ranks->Connect(by_rank, groups, std::chrono::milliseconds(timeout_ms)));
  const size_t step = tables->struct_size;
  for (size_t i = 0; i < made.size(); ++i) {
    auto* const table =
        reinterpret_cast<sluice_comm_table*>(reinterpret_cast<std::byte*>(tables) + i * step);
    table->struct_size = step;
    WriteStruct(made[i], table);
  }
  return absl::OkStatus();
}

}  // namespace

}  // namespace sluice::c_api

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

extern "C" {

int32_t sluice_local_listen(uint32_t rank, uint32_t ranks, char* address, uint64_t* listener) {
  return Guarded([&]() -> absl::Status {
    static_assert(std::tuple_size_v<LocalRanks::Address> == SLUICE_LOCAL_ADDRESS_BYTES);
    SLUICE_RETURN_IF_ERROR(NotNull(address, "address"));
    SLUICE_RETURN_IF_ERROR(NotNull(listener, "listener"));
    SLUICE_RETURN_IF_ERROR(CheckRange(ranks, 1, kRanksMax, "ranks"));
    SLUICE_RETURN_IF_ERROR(CheckRange(rank, 0, int64_t{ranks} - 1, "rank"));
    SLUICE_ASSIGN_OR_RETURN(LocalRanks made, LocalRanks::Listen(Rank(rank), ranks));
    std::ranges::copy(made.address(), address);
    *listener = Listeners().Add(std::make_shared<LocalRanks>(std::move(made)));
    return absl::OkStatus();
  });
}

int32_t sluice_local_connect(uint64_t listener, const char* addresses, uint32_t groups,
                             int32_t timeout_ms, sluice_comm_table* tables) {
  return Guarded([&] { return LocalConnect(listener, addresses, groups, timeout_ms, tables); });
}

int32_t sluice_local_forget(uint64_t listener) {
  return Guarded([&] { return Listeners().Remove(listener, "listener").status(); });
}

}  // extern "C"
