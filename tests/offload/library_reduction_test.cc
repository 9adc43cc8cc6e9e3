// Gradients added up as the ranks' communicator does it (ReductionMode::kLibrary), over each that
// can. The oracle is arithmetic in fp64.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/run/reduction_trial.h"
#include "tests/comm/group_makers.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using testing::LinkRanks;
using testing::OnRanks;
using testing::RankResult;
using testing::RanksCase;
using testing::Trainer;
using testing::TrainerOptions;
using testing::Where;

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};

RanksCase LibraryCase(uint32_t ranks, int stage, FloatType type) {
  RanksCase c = testing::InMemory(ranks, stage);
  c.config.types = {.param = type, .grad = type};
  c.training.param_type = c.training.grad_type = type;
  c.config.placement.reduction = ReductionMode::kLibrary;
  c.config.budgets = {MiB(4), MiB(32), GiB(1)};
  return c;
}

struct Gradients {
  std::vector<std::vector<float>> values;  // by tensor
  std::string report;
  absl::Status status;
};

// What a rank reads of its gradients after one micro-step.
Gradients GradientsOf(const RanksCase& c, uint32_t rank, RankLinks links) {
  TrainerOptions training = c.training;
  training.rank = rank;
  training.ranks = c.ranks;
  Gradients result;
  auto runtime = MakeRank(c, rank, std::move(links));
  if (!runtime.ok()) return {.values = {}, .report = {}, .status = runtime.status()};
  {
    Trainer trainer(runtime->get(), c.spec, training);
    result.status = trainer.Load();
    if (result.status.ok()) result.status = trainer.MicroStep(0, 0);
    for (uint32_t t = 0; result.status.ok() && t < c.spec.tensors.size(); ++t) {
      auto values = trainer.Read(t, Field::kGrad);
      result.status = values.status();
      if (values.ok()) result.values.push_back(*std::move(values));
    }
    result.report = (*runtime)->ReportJson();
  }
  const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
  if (result.status.ok()) result.status = closed;
  return result;
}

// Within a rounding of each addition and of the division, of the gradients' type.
void ExpectMeans(const RanksCase& c, const std::vector<std::vector<float>>& found) {
  const FloatType type = c.training.grad_type;
  const double rounding = type == FloatType::kF32    ? 0x1p-24
                          : type == FloatType::kBf16 ? 0x1p-9
                                                     : 0x1p-11;
  std::vector<std::vector<float>> master;
  for (uint32_t t = 0; t < c.spec.tensors.size(); ++t)
    master.push_back(InitialOf(c.spec, c.training, t));
  std::vector<std::vector<std::vector<std::byte>>> given(c.ranks);
  for (uint32_t r = 0; r < c.ranks; ++r) {
    given[r].resize(c.spec.tensors.size());
    AddGradients(c.spec, c.training, r, 0, 0, master, &given[r]);
  }
  for (uint32_t t = 0; t < c.spec.tensors.size(); ++t) {
    ASSERT_EQ(master[t].size(), found[t].size());
    std::vector<double> sum(master[t].size()), size(master[t].size());
    for (uint32_t r = 0; r < c.ranks; ++r) {
      const std::vector<float> values = testing::ValuesOf(given[r][t], type);
      for (size_t i = 0; i < values.size(); ++i) {
        sum[i] += values[i];
        size[i] += std::abs(values[i]);
      }
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      const double bound = c.ranks * rounding * size[i] / c.ranks + 0x1p-24;
      ASSERT_NEAR(sum[i] / c.ranks, found[t][i], bound) << "tensor " << t << ", element " << i;
    }
  }
}

class LibraryReductionTest : public ::testing::TestWithParam<CommImplementation> {};

TEST_P(LibraryReductionTest, MeansAreArithmeticAndTheSameOnAllRanks) {
  for (const uint32_t ranks : {2u, 3u}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const FloatType type : kTypes) {
        SCOPED_TRACE(::testing::Message()
                     << ranks << " ranks, stage " << stage << ", " << Name(type));
        RanksCase c = LibraryCase(ranks, stage, type);
        c.behind_link = GetParam().name == std::string("Nccl");
        const auto maker = GetParam().make(ranks);
        std::vector<RankLinks> links = LinkRanks(ranks, c.behind_link);
        Group group = maker->Make({.timeout = std::chrono::seconds(60)});
        for (uint32_t r = 0; r < ranks; ++r) links[r].gradients = std::move(group[r]);
        std::vector<Gradients> results(ranks);
        OnRanks(ranks, [&](uint32_t r) { results[r] = GradientsOf(c, r, std::move(links[r])); });
        for (uint32_t r = 0; r < ranks; ++r) {
          ASSERT_TRUE(results[r].status.ok()) << results[r].status;
          ASSERT_EQ(results[0].values, results[r].values);
          EXPECT_THAT(results[r].report, HasSubstr("\"reduction\": \"library\""));
        }
        ExpectMeans(c, results[0].values);
      }
    }
  }
}

std::vector<CommImplementation> InRealTime() {
  std::vector<CommImplementation> all;
  for (const CommImplementation& one : kCommImplementations)
    if (one.name != std::string("Simulated")) all.push_back(one);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, LibraryReductionTest, ::testing::ValuesIn(InRealTime()), NameOf);

class LibraryTrainingTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, bool>> {};

// Ranks that skip units or run them twice, in a model of all types with frozen tensors, anywhere.
TEST_P(LibraryTrainingTest, RanksAgreeToTheBit) {
  const auto [ranks, stage, behind_link] = GetParam();
  for (const Where where : testing::kEveryWhere) {
    if (stage < 3 && where == Where::kAllOnNvme) continue;
    SCOPED_TRACE(::testing::Message() << "place " << static_cast<int>(where));
    TempDir directory;
    RanksCase c = testing::CaseAt(ranks, stage, where, directory.path());
    c.spec = testing::MixedModel(ranks * 10 + static_cast<uint64_t>(stage));
    c.config.placement.reduction = ReductionMode::kLibrary;
    c.config.budgets.pinned += MiB(1);
    c.config.budgets.hbm += KiB(200);
    c.behind_link = behind_link;
    c.training.rank_order = [](uint32_t rank, int step, size_t units) {
      std::vector<uint32_t> order;
      for (uint32_t u = 0; u < units; ++u) {
        const uint32_t dice = u + rank + static_cast<uint32_t>(step);
        if (dice % 3 != 0) order.push_back(u);
        if (dice % 5 == 0) order.push_back(u);
      }
      return order;
    };
    const std::vector<RankResult> results = testing::Train(c);
    for (uint32_t r = 0; r < ranks; ++r) {
      ASSERT_TRUE(results[r].status.ok()) << "rank " << r << ": " << results[r].status;
      EXPECT_EQ(results[0].norm, results[r].norm);
      ASSERT_EQ(results[0].master, results[r].master);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LibraryTrainingTest,
                         ::testing::Combine(::testing::Values(3u), ::testing::Range(0, 4),
                                            ::testing::Bool()));

// The gradients' bytes are those of the ordered mode, 2P(N-1)/N or, where sums are gathered, twice
// P(N-1)/N; no room is held for what others have; and bf16 sums are rounded once more.
TEST(LibraryReductionTest, AsManyBytesAreSentAndFewerHeld) {
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    for (int stage = 0; stage <= 3; ++stage) {
      SCOPED_TRACE(::testing::Message() << ranks << " ranks, stage " << stage);
      RanksCase c = LibraryCase(ranks, stage, FloatType::kBf16);
      RanksCase ordered = c;
      ordered.config.placement.reduction = ReductionMode::kOrdered;
      const std::vector<RankResult> with = testing::Train(c), without = testing::Train(ordered);
      for (uint32_t r = 0; r < ranks; ++r) {
        ASSERT_TRUE(with[r].status.ok()) << with[r].status;
        const auto trial = static_cast<double>(ranks - 1) * sizeof(float);
        const auto sent = static_cast<double>(without[r].gradients.value());
        EXPECT_NEAR(sent + trial, static_cast<double>(with[r].gradients.value()), 0.01 * sent);
        const absl::StatusOr<Plan> plan = MakePlan(c.spec, ConfigOfRank(c, r));
        const absl::StatusOr<Plan> plain = MakePlan(c.spec, ConfigOfRank(ordered, r));
        ASSERT_TRUE(plan.ok() && plain.ok());
        EXPECT_EQ(plan->placement.received_buffer_bytes, Bytes(0));
        EXPECT_EQ(
            plain->placement.exchange(Tier::kPinned) - plan->placement.exchange(Tier::kPinned),
            plain->placement.received_buffer_bytes * kExchanges);
      }
      EXPECT_EQ(ranks == 3, with[0].master != without[0].master);  // of two, halves are exact
    }
  }
}

TEST(LibraryReductionTest, OneModeIsTheRanks) {
  RanksCase c = LibraryCase(2, 1, FloatType::kBf16);
  std::vector<RankLinks> links = LinkRanks(2);
  std::vector<absl::Status> made(2);
  OnRanks(2, [&](uint32_t r) {
    RanksCase mine = c;
    if (r == 1) mine.config.placement.reduction = ReductionMode::kOrdered;
    made[r] = MakeRank(mine, r, std::move(links[r])).status();
  });
  for (const absl::Status& status : made)
    EXPECT_THAT(status.message(),
                HasSubstr("the reduction of rank 1 is 'ordered' and that of rank 0 'library'"));
}

// A communicator whose every operation ends so; sums are what was in the memory.
class Ending final : public Communicator {
 public:
  Ending(const absl::Status& status, const Clock* clock)
      : Communicator(Rank(0), 2, {}, clock), ending_(status) {}
  ~Ending() override { static_cast<void>(Close()); }
  std::string description() const override { return "a test's"; }

 private:
  void Start(CommOp* op) override { End(op, ending_); }
  void Interrupt(const absl::Status&) override {}
  void Leave() override {}

  const absl::Status ending_;
};

TEST(LibraryReductionTest, OnlyWhatTheCommunicatorRefusesIsCalledARefusal) {
  static const SteadyClock clock;
  for (int code = 0; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
    const absl::Status given(static_cast<absl::StatusCode>(code), "rank 1: as it is");
    Ending communicator(given, &clock);
    const absl::Status found = TryLibraryReduction(&communicator);
    if (given.ok()) {
      EXPECT_TRUE(absl::IsFailedPrecondition(found)) << found;
      EXPECT_THAT(std::string(Message(found)), HasSubstr("a sum of 3 came to 0"));
    } else if (absl::IsUnimplemented(given) || absl::IsInvalidArgument(given)) {
      EXPECT_TRUE(absl::IsFailedPrecondition(found)) << found;
      EXPECT_THAT(std::string(Message(found)),
                  HasSubstr("can't add up gradients itself (rank 1: as it is); 'ordered'"));
    } else {
      EXPECT_EQ(given, found);
    }
  }
}

// A framework's table that exchanges, and adds nothing up.
TEST(LibraryReductionTest, WhoseCommunicatorAddsNothingUpIsRefusedWithItsWords) {
  static const SteadyClock clock;
  struct Table {
    std::unique_ptr<TableOverGroup> all;
    sluice_comm_table given;
  };
  for (const ReductionMode mode : {ReductionMode::kLibrary, ReductionMode::kOrdered}) {
    RanksCase c = LibraryCase(2, 2, FloatType::kBf16);
    c.config.placement.reduction = mode;
    std::vector<RankLinks> links = LinkRanks(2);
    std::vector<Table> tables(2);
    for (uint32_t r = 0; r < 2; ++r) {
      tables[r].all = std::make_unique<TableOverGroup>(std::move(links[r].gradients), 2);
      tables[r].given = tables[r].all->table();
      tables[r].given.start = [](void* context, const sluice_comm_call* call, uint64_t operation,
                                 char* error, size_t bytes) -> int32_t {
        if (call->kind != SLUICE_COMM_REDUCE_SCATTER) {
          auto* const all = static_cast<TableOverGroup*>(context);
          return all->table().start(context, call, operation, error, bytes);
        }
        std::snprintf(error, bytes, "no sums here");
        return SLUICE_COMM_UNSUPPORTED;
      };
      links[r].gradients = MakeSuppliedCommunicator(tables[r].given, {}, &clock).value();
    }
    std::vector<absl::Status> made(2);
    OnRanks(2, [&](uint32_t r) { made[r] = GradientsOf(c, r, std::move(links[r])).status; });
    for (const absl::Status& status : made) {
      EXPECT_EQ(status.ok(), mode == ReductionMode::kOrdered) << status;
      if (status.ok()) continue;
      EXPECT_THAT(status.message(),
                  HasSubstr("reduction 'library': the ranks' communicator can't"));
      EXPECT_THAT(status.message(), HasSubstr("no sums here"));
    }
  }
}

}  // namespace
}  // namespace sluice
