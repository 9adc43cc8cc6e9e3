// Ranks that exchange over NCCL, as ranks with a GPU each do: the adapter over the tests' own
// library, with host memory as HBM behind a link. At every stage, with everything anywhere, they
// come to the bits of plain arrays, and what NCCL is told of lies in HBM, the rest outside.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/comm/fake_nccl/nccl_group.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using testing::RankResult;
using testing::RanksCase;
using testing::TrainerOptions;
using testing::Where;

const CommOptions kOptions{.timeout = std::chrono::seconds(60)};

// HBM of one rank.
class Hbm {
 public:
  explicit Hbm(Bytes size)
      : memory_(std::aligned_alloc(4096, size.size()), &std::free), size_(size.value()) {
    tensor_.dl_tensor = {.data = memory_.get(),
                         .device = {.device_type = kDlCpu, .device_id = 0},
                         .ndim = 1,
                         .dtype = {.code = 1, .bits = 8, .lanes = 1},
                         .shape = &size_,
                         .strides = nullptr,
                         .byte_offset = 0};
  }
  std::shared_ptr<SuppliedMemory> Supply() { return std::make_shared<SuppliedMemory>(&tensor_); }
  // Of views with bytes, how many lie in it and how many don't.
  void Count(const CommOp& op, std::atomic<int>* inside, std::atomic<int>* outside) const {
    const auto count = [&](const auto& views) {
      for (const auto& view : views) {
        if (view.empty()) continue;
        const auto* const begin = static_cast<const std::byte*>(memory_.get());
        const bool in = view.data() >= begin && view.data() + view.size() <= begin + size_;
        ++*(in ? inside : outside);
      }
    };
    count(op.send.views);
    count(op.receive.views);
  }

 private:
  const std::unique_ptr<void, decltype(&std::free)> memory_;
  int64_t size_;
  DlManagedTensor tensor_{};
};

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

class NcclRanksTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, Where>> {};

TEST_P(NcclRanksTest, ComeToTheBitsOfPlainArrays) {
  const auto [ranks, stage, where] = GetParam();
  TempDir directory;
  RanksCase c = testing::CaseAt(ranks, stage, where, directory.path());
  c.behind_link = true;
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
  std::vector<RankLinks> links = LinkOverNccl(ranks);
  static const SteadyClock clock;
  std::deque<Hbm> hbm;
  std::vector<std::array<std::atomic<int>, 2>> wrong(ranks), right(ranks);  // host memory, HBM
  for (uint32_t r = 0; r < ranks; ++r) hbm.emplace_back(MiB(20));
  for (uint32_t r = 0; r < ranks; ++r) {
    for (const bool host : {false, true}) {
      const auto look = [&, r, host](const CommOp& op) {
        host ? hbm[r].Count(op, &wrong[r][0], &right[r][0])
             : hbm[r].Count(op, &right[r][1], &wrong[r][1]);
      };
      for (std::unique_ptr<Communicator>* const link :
           {host ? &links[r].values : &links[r].gradients, host ? nullptr : &links[r].gathers}) {
        if (link == nullptr) continue;
        *link =
            std::make_unique<testing::LateCommunicator>(std::move(*link), Nanos(0), &clock, look);
      }
    }
  }
  c.hbm = [&hbm](uint32_t r) { return hbm[r].Supply(); };
  const std::vector<RankResult> results = testing::Train(c, std::move(links));
  for (uint32_t r = 0; r < ranks; ++r) {
    EXPECT_EQ(0, wrong[r][0]) << "HBM over a link of host memory, rank " << r;
    EXPECT_EQ(0, wrong[r][1]) << "host memory over a link of HBM, rank " << r;
    EXPECT_GT(right[r][0], 0);
    EXPECT_GT(right[r][1], 0);
  }
  for (uint32_t r = 0; r < c.ranks; ++r) {
    ASSERT_TRUE(results[r].status.ok()) << "rank " << r << ": " << results[r].status;
    EXPECT_EQ(results[0].norm, results[r].norm);
    for (uint32_t t = 0; t < expected.size(); ++t)
      ASSERT_EQ(expected[t], results[r].master[t]) << "rank " << r << ", tensor " << t;
  }
}

std::vector<std::tuple<uint32_t, int, Where>> EveryCase() {
  std::vector<std::tuple<uint32_t, int, Where>> cases;
  for (uint32_t ranks = 2; ranks <= 3; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const Where where : testing::kEveryWhere) {
        // The stand-in for NCCL runs where HBM is; parameters that are whole in pinned memory do
        // not touch it.
        if (stage == 3 || where < Where::kAllOnNvme) cases.emplace_back(ranks, stage, where);
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, NcclRanksTest, ::testing::ValuesIn(EveryCase()));

}  // namespace
}  // namespace sluice
