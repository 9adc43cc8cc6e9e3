// Ranks that exchange over NCCL, as ranks with a GPU each do: the adapter over the tests' own library,
// with host memory as HBM behind a link. At every stage, with everything anywhere, they come to the
// bits of plain arrays, and nothing but gradients and parameters goes over NCCL.

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/comm/fake_nccl/nccl_group.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using testing::InMemory;
using testing::RankResult;
using testing::RanksCase;
using testing::TrainerOptions;

const CommOptions kOptions{.timeout = std::chrono::seconds(60)};

std::vector<RankLinks> LinkOverNccl(uint32_t ranks) {
  static const SteadyClock clock;
  std::vector<RankLinks> links = testing::LinkRanks(ranks, true);
  for (std::unique_ptr<Communicator> RankLinks::*const which :
       {&RankLinks::gradients, &RankLinks::gathers}) {
    Group control;
    for (RankLinks& of_rank : links) control.push_back(std::move(of_rank.*which));
    Group group = MakeNcclGroup(std::move(control), kOptions, &clock);
    for (uint32_t r = 0; r < ranks; ++r) links[r].*which = std::move(group[r]);
  }
  return links;
}

enum class Where { kAllInHbm, kStatesOnHost, kStatesOnNvme, kParamsPinned, kAllOnNvme };

RanksCase CaseOf(uint32_t ranks, int stage, Where where, const std::string& directory) {
  RanksCase c = InMemory(ranks, stage);
  c.behind_link = true;
  c.training.micro_steps = 2;
  if (where == Where::kAllInHbm) {
    c.config.placement.lowest_state_tier = c.config.highest_state_tier_on_host = Tier::kHbm;
    c.config.budgets.hbm = MiB(16);
  }
  if (where == Where::kStatesOnNvme || where == Where::kAllOnNvme) {
    c.config.nvme_paths = {directory};
    c.config.budgets.pinned = MiB(1);
    c.config.placement.state_buffers = c.config.placement.param_buffers = 4;
  }
  if (where >= Where::kParamsPinned) {
    c.config.budgets.hbm = KiB(300);
    c.config.placement.lowest_param_tier =
        where == Where::kAllOnNvme ? Tier::kNvme : Tier::kPinned;
  }
  return c;
}

class NcclRanksTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, Where>> {};

TEST_P(NcclRanksTest, ComeToTheBitsOfPlainArrays) {
  const auto [ranks, stage, where] = GetParam();
  TempDir directory;
  RanksCase c = CaseOf(ranks, stage, where, directory.path());
  // Each rank its own units, so that some send only, and some add zeros only.
  c.training.rank_order = [](uint32_t rank, int step, size_t units) {
    std::vector<uint32_t> order;
    for (uint32_t u = 0; u < units; ++u)
      if ((u + rank + static_cast<uint32_t>(step)) % 3 != 0) order.push_back(u);
    return order;
  };
  TrainerOptions all = c.training;
  all.ranks = c.ranks;
  const auto expected = testing::TrainReference(c.spec, all);
  const std::vector<RankResult> results = testing::Train(c, LinkOverNccl(ranks));
  for (uint32_t r = 0; r < c.ranks; ++r) {
    ASSERT_TRUE(results[r].status.ok()) << "rank " << r << ": " << results[r].status;
    EXPECT_EQ(results[0].norm, results[r].norm);
    for (uint32_t t = 0; t < expected.size(); ++t)
      ASSERT_EQ(expected[t], results[r].master[t]) << "rank " << r << ", tensor " << t;
  }
}

std::vector<std::tuple<uint32_t, int, Where>> EveryCase() {
  std::vector<std::tuple<uint32_t, int, Where>> cases;
  for (uint32_t ranks = 2; ranks <= 4; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const Where where : {Where::kAllInHbm, Where::kStatesOnHost, Where::kStatesOnNvme,
                                Where::kParamsPinned, Where::kAllOnNvme}) {
        // The stand-in for NCCL runs where HBM is; parameters that are whole in pinned memory do not
        // touch it.
        if (stage == 3 || where < Where::kAllOnNvme) cases.emplace_back(ranks, stage, where);
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, NcclRanksTest, ::testing::ValuesIn(EveryCase()));

}  // namespace
}  // namespace sluice
