// tests/offload/ranks_fixture.h
//
// Several ranks in one process, each a runtime with threads of its own.

#ifndef SLUICE_TESTS_OFFLOAD_RANKS_FIXTURE_H_
#define SLUICE_TESTS_OFFLOAD_RANKS_FIXTURE_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/in_process.h"
#include "core/status.h"
#include "offload/run/factory.h"
#include "tests/offload/late_communicator.h"
#include "tests/offload/trainer.h"

namespace sluice::testing {

// How a rank is told of the others, by rank; with what compute behind a link needs.
inline std::vector<RankLinks> LinkRanks(uint32_t ranks, bool behind_link = false) {
  static const SteadyClock clock;
  std::vector<RankLinks> links(ranks);
  const auto make = [&](std::unique_ptr<Communicator> RankLinks::*which) {
    auto group = MakeInProcessRanks(ranks, {.timeout = std::chrono::seconds(60)}, &clock);
    SLUICE_CHECK(group.ok());
    for (uint32_t r = 0; r < ranks; ++r) links[r].*which = std::move((*group)[r]);
  };
  make(&RankLinks::agreement);
  make(&RankLinks::gradients);
  make(&RankLinks::gathers);
  if (behind_link) make(&RankLinks::values);
  return links;
}

// Calls f(rank) for each, in a thread of its own.
inline void OnRanks(uint32_t ranks, const std::function<void(uint32_t)>& f) {
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < ranks; ++r) threads.emplace_back([&f, r] { f(r); });
  for (std::thread& thread : threads) thread.join();
}

struct RanksCase {
  ModelSpec spec = OddModel();
  uint32_t ranks = 2;
  int stage = 1;
  RuntimeConfig config;
  TrainerOptions training;
  bool behind_link = false;  // compute: ranks exchange in HBM, for which there is room beside it
  Nanos hear_after{0};       // of each other
  std::function<std::shared_ptr<SuppliedMemory>(uint32_t rank)> hbm;  // if set, its memory
  // If set, each rank's caller looks only so long after whether what it waits for is done.
  std::function<Nanos(uint32_t rank)> look_after;
};

// Of bf16, in small chunks, everything in memory.
inline RanksCase InMemory(uint32_t ranks, int stage) {
  RanksCase c{.ranks = ranks, .stage = stage};
  c.config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  c.config.chunk_elements = 2 * kCellElements;
  c.config.workers = 1;
  c.config.placement.resident_elements_max = 100;
  c.config.placement.lowest_param_tier = Tier::kHbm;
  c.config.budgets = {MiB(1), MiB(16), GiB(1)};
  return c;
}

// Where states and parameters are kept; two micro-steps a step.
enum class Where { kAllInHbm, kStatesOnHost, kStatesOnNvme, kParamsPinned, kAllOnNvme };
inline constexpr Where kEveryWhere[] = {Where::kAllInHbm, Where::kStatesOnHost,
                                        Where::kStatesOnNvme, Where::kParamsPinned,
                                        Where::kAllOnNvme};
inline RanksCase CaseAt(uint32_t ranks, int stage, Where where, const std::string& directory) {
  RanksCase c = InMemory(ranks, stage);
  c.training.micro_steps = 2;
  if (where == Where::kAllInHbm) {
    c.config.placement.lowest_state_tier = c.config.highest_state_tier_on_host = Tier::kHbm;
    c.config.budgets.hbm = MiB(16);
  }
  if (where == Where::kStatesOnNvme) {
    c.config.nvme_paths = {directory};
    c.config.budgets.pinned = MiB(1);
    c.config.placement.state_buffers = 4;
  }
  if (where >= Where::kParamsPinned) {
    c.config.budgets.hbm = KiB(300);
    c.config.placement.lowest_param_tier = Tier::kPinned;
  }
  if (where == Where::kAllOnNvme) {
    c.config.nvme_paths = {directory};
    c.config.placement.lowest_param_tier = Tier::kNvme;
    c.config.placement.state_buffers = c.config.placement.param_buffers = 2;
    c.config.budgets.pinned = KiB(800);
  }
  return c;
}

inline RuntimeConfig ConfigOfRank(const RanksCase& c, uint32_t rank) {
  RuntimeConfig config = c.config;
  config.sharding = {
      .rank = Rank(rank), .ranks = c.ranks, .states = c.stage >= 1, .params = c.stage == 3};
  if (c.hbm) config.hbm = c.hbm(rank);
  if (!c.behind_link) return config;
  config.link_bytes_per_second = 8e9;
  RuntimeConfig roomy = config;
  roomy.budgets = {GiB(1), GiB(1), GiB(1)};
  const absl::StatusOr<Plan> plan = MakePlan(c.spec, roomy);
  SLUICE_CHECK(plan.ok());
  config.budgets.hbm += plan->placement.exchange(Tier::kHbm);
  return config;
}

inline absl::StatusOr<std::unique_ptr<OffloadRuntime>> MakeRank(const RanksCase& c, uint32_t rank,
                                                                RankLinks links) {
  return MakeRuntime(c.spec, ConfigOfRank(c, rank), std::move(links));
}

struct RankResult {
  absl::Status status;
  std::vector<std::vector<float>> master;  // by tensor
  double norm = 0;
  Bytes gradients;  // sent in the training
  Bytes gathers;
};

inline Bytes SentOver(const Communicator& link) {
  Bytes sent;
  for (const CommCount& count : link.counts()) sent += count.sent;
  return sent;
}

inline RankResult TrainRank(const RanksCase& c, uint32_t rank, RankLinks links) {
  TrainerOptions training = c.training;
  training.rank = rank;
  training.ranks = c.ranks;
  if (c.look_after) {
    training.give_up = [&c, rank] {
      std::this_thread::sleep_for(c.look_after(rank));
      return false;
    };
  }
  RankResult result;
  const Communicator* const gradients = links.gradients.get();
  const Communicator* const gathers = links.gathers.get();
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRank(c, rank, std::move(links));
  if (!runtime.ok()) return {.status = runtime.status(), .master = {}};
  {
    Trainer trainer(runtime->get(), c.spec, training);
    result.status = trainer.Run();
    if (c.ranks > 1 && result.status.ok()) {
      result.gradients = SentOver(*gradients);
      result.gathers = SentOver(*gathers);
    }
    for (uint32_t t = 0; result.status.ok() && t < c.spec.tensors.size(); ++t) {
      absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
      result.status = master.status();
      if (master.ok()) result.master.push_back(*std::move(master));
    }
    result.norm = (*runtime)->last_step().grad_norm;
  }
  const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
  if (result.status.ok()) result.status = closed;
  return result;
}

inline std::vector<RankResult> Train(const RanksCase& c, std::vector<RankLinks> links) {
  for (RankLinks& of_rank : links) {
    if (c.hear_after == Nanos(0)) break;
    static const SteadyClock clock;
    of_rank.agreement =
        std::make_unique<LateCommunicator>(std::move(of_rank.agreement), c.hear_after, &clock);
    of_rank.gathers =
        std::make_unique<LateCommunicator>(std::move(of_rank.gathers), 4 * c.hear_after, &clock);
  }
  std::vector<RankResult> results(c.ranks);
  OnRanks(c.ranks, [&](uint32_t r) { results[r] = TrainRank(c, r, std::move(links[r])); });
  return results;
}
inline std::vector<RankResult> Train(const RanksCase& c) {
  return Train(c, LinkRanks(c.ranks, c.behind_link));
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_RANKS_FIXTURE_H_
