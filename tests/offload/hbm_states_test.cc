// States and gradients in HBM: the update, the norm and the sums of gradients run on the device,
// and the bits are those of any other place. In simulation, where a device's work takes effect when
// it completes, and on the host device.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nlohmann/json.hpp"
#include "offload/plan/traffic.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using ::testing::AnyOf;
using testing::ConfigOf;
using testing::DrawnFrom;
using ::testing::HasSubstr;
using testing::OddModel;
using testing::Outcome;
using testing::SameBits;
using testing::Trainer;
using testing::TrainerOptions;

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};

RuntimeConfig InHbm(uint64_t seed) {
  RuntimeConfig config = ConfigOf(seed);
  config.placement.lowest_state_tier = Tier::kHbm;
  config.highest_state_tier_on_host = Tier::kHbm;
  config.budgets.hbm = MiB(8);
  config.nvme_paths.clear();
  return config;
}

TrainerOptions TypesOf(uint64_t seed, RuntimeConfig* config) {
  TrainerOptions options{.steps = 3, .micro_steps = 2};
  options.param_type = kTypes[seed % 3];
  options.grad_type = kTypes[seed / 3 % 3];
  config->types = {.param = options.param_type, .grad = options.grad_type};
  return options;
}

TEST(HbmStatesTest, EverySeedIsExact) {
  for (const uint64_t seed : Seeds(36)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = InHbm(seed);
    const TrainerOptions options = TypesOf(seed, &config);
    const ModelSpec spec = DrawnFrom(seed).spec;
    const Outcome outcome = testing::Simulate(spec, config, {.seed = seed}, options);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(SameBits(outcome.masters, TrainReference(spec, options)));
    EXPECT_EQ(outcome.unsettled, "");
  }
}

TEST(HbmStatesTest, UnitsMayComeTwiceOrNotAtAll) {
  for (const uint64_t seed : Seeds(12)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = InHbm(seed);
    TrainerOptions options = TypesOf(seed, &config);
    options.order = [seed](int step, size_t units) {
      const auto skipped = static_cast<uint32_t>((seed + static_cast<uint64_t>(step)) % units);
      std::vector<uint32_t> order;
      for (uint32_t u = 0; u < units; ++u) {
        if (u != skipped) order.push_back(u);
      }
      order.push_back(order.front());
      return order;
    };
    const Outcome outcome = testing::Simulate(OddModel(), config, {.seed = seed}, options);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(SameBits(outcome.masters, TrainReference(OddModel(), options)));
  }
}

// HBM holds all parameters and, from none to all, a beginning of the states; what is below goes to
// RAM and, where there is none left, to drives.
TEST(HbmStatesTest, AnyPartOfTheStatesMayBeThereTheOthersBelow) {
  int of_all_tiers = 0;
  for (const uint64_t seed : Seeds(44)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = InHbm(seed);
    const TrainerOptions options = TypesOf(seed, &config);
    const ModelSpec spec = DrawnFrom(seed).spec;
    config.budgets = {GiB(1), GiB(1), GiB(1)};
    const absl::StatusOr<Plan> all = MakePlan(spec, config);
    ASSERT_TRUE(all.ok()) << all.status();
    const Bytes params = all->placement.hbm_fixed;
    config.placement.lowest_state_tier = Tier::kNvme;
    config.nvme_paths = {"simulated", "also simulated"};
    config.budgets.hbm =
        params + (all->placement.hbm() - params) * static_cast<int64_t>(seed % 11) / 10;
    config.budgets.pinned = Bytes(0);
    const auto least = SmallestThatWould(MakePlan(spec, config).status());
    ASSERT_TRUE(least.has_value());
    config.budgets.pinned = *least + KiB(static_cast<int64_t>(seed * 7 % 5) * 200);
    const absl::StatusOr<Plan> plan = MakePlan(spec, config);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const Placement& p = plan->placement;
    int64_t updated_below = 0;
    bool there[3] = {};
    for (size_t c = 0; c < p.state_home.size(); ++c) {
      const ChunkLayout& chunk = plan->layout.chunks()[c];
      if (chunk.keep == Keep::kParam) continue;
      there[static_cast<int>(p.state_home[c])] = true;
      for (const ChunkRun& run : plan->layout.runs(chunk))
        updated_below += p.state_home[c] == Tier::kHbm ? 0 : run.elements;
    }
    if (there[0] && there[1] && there[2]) ++of_all_tiers;
    if (seed % 11 == 0) EXPECT_FALSE(there[0]);
    EXPECT_EQ(there[1] || there[2], seed % 11 < 10);
    EXPECT_EQ(TrafficOf(plan->layout, p).elements_updated, updated_below);
    const Outcome outcome = testing::Simulate(spec, config, {.seed = seed}, options);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(SameBits(outcome.masters, TrainReference(spec, options)));
    EXPECT_EQ(outcome.unsettled, "");
  }
  EXPECT_GT(of_all_tiers, 8);
}

TEST(HbmStatesTest, TheHostDeviceIsExactAndReportsWhereThingsAre) {
  RuntimeConfig config = InHbm(4);
  const TrainerOptions options = TypesOf(4, &config);
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(OddModel(), config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), options);
  const absl::Status trained = trainer.Run();
  ASSERT_TRUE(trained.ok()) << trained;
  const auto expected = TrainReference(OddModel(), options);
  for (uint32_t t = 0; t < expected.size(); ++t) {
    const absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
    ASSERT_TRUE(master.ok()) << master.status();
    EXPECT_EQ(expected[t], *master) << "tensor " << OddModel().tensors[t].name;
  }
  const nlohmann::json report = nlohmann::json::parse((*runtime)->ReportJson());
  EXPECT_GT(report["hbm"]["states_bytes"], 0);
  EXPECT_GT(report["hbm"]["gradients_bytes"], 0);
  EXPECT_EQ(report["pinned"]["gradients_bytes"], 0);
  EXPECT_EQ(report["pinned"]["states_bytes"], 0);
  EXPECT_EQ(report["step_traffic"]["gradient_bytes"], 0);
}

TEST(HbmStatesTest, ValuesAndGradientsAreReadAsTheyWereWritten) {
  RuntimeConfig config = InHbm(1);
  config.types.grad = FloatType::kF32;
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(OddModel(), config, {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  Trainer trainer(sim->runtime.get(), OddModel(), {});
  ASSERT_TRUE(trainer.Load().ok());
  const TensorIndex tensor(4);  // 12289 elements, behind others in its chunks
  std::vector<float> values = testing::InitialValues(77, 12289);
  for (const Field field : {Field::kExpAvg, Field::kExpAvgSq}) {
    ASSERT_TRUE(trainer
                    .Wait(sim->runtime->Access({.write = true,
                                                .tensor = tensor,
                                                .field = field,
                                                .data = reinterpret_cast<std::byte*>(values.data()),
                                                .type = FloatType::kF32,
                                                .done = nullptr}))
                    .ok());
    EXPECT_EQ(trainer.Read(tensor.value(), field).value(), values);
    values[0] += 1;
  }
  const auto bytes = std::as_bytes(std::span(values));
  for (int i = 0; i < 2; ++i)  // the second is added
    ASSERT_TRUE(trainer.Wait(sim->runtime->PushGrad(tensor, bytes)).ok());
  for (float& value : values) value *= 2;
  EXPECT_EQ(trainer.Read(tensor.value(), Field::kGrad).value(), values);
  EXPECT_EQ(trainer.Read(3, Field::kMaster).value(), testing::InitialValues(3, 4096));
}

TEST(HbmStatesTest, ATooSmallBudgetIsRefusedWithTheSmallestThatWouldDo) {
  RuntimeConfig config = InHbm(1);
  config.budgets.hbm = MiB(1);
  const absl::Status refused = MakePlan(OddModel(), config).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(Message(refused)), HasSubstr("the hbm budget of 1 MiB"));
  config.budgets.hbm = Bytes(-1);  // chosen
  EXPECT_TRUE(MakePlan(OddModel(), config).ok());
}

TEST(HbmStatesTest, OnTheHostStatesGoToPinnedMemoryUnlessAskedFor) {
  RuntimeConfig config = InHbm(1);
  config.highest_state_tier_on_host = Tier::kPinned;
  config.budgets.pinned = MiB(8);
  const absl::StatusOr<Plan> plan = MakePlan(OddModel(), config);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->placement.state_home[0], Tier::kPinned);
  EXPECT_EQ(plan->placement.grad_home[0], Tier::kPinned);
}

// Every seventh operation of the device fails, each in a run of its own.
TEST(HbmStatesTest, AnOperationThatFailsEndsInAClearErrorAndEverythingComesBack) {
  RuntimeConfig config = InHbm(2);
  const TrainerOptions options{.steps = 1, .micro_steps = 2};
  const auto fail_at = [&](uint64_t nth) {
    return testing::Simulate(OddModel(), config,
                             {.seed = 2,
                              .faults =
                                  [nth](SimFaults* faults) {
                                    faults->Script(SimSeam::kCopy, SimFault::kError, nth,
                                                   SimFaults::Repeat::kOnce);
                                  }},
                             options);
  };
  uint64_t nth = 1;
  for (; nth < 2000 && !HasFailure(); nth += 7) {
    SCOPED_TRACE(nth);
    const Outcome outcome = fail_at(nth);
    EXPECT_EQ(outcome.unsettled, "");
    if (outcome.faults == 0) break;
    EXPECT_FALSE(outcome.status.ok());
    EXPECT_FALSE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
    EXPECT_THAT(std::string(Message(outcome.status)),
                AnyOf(HasSubstr("unit '"), HasSubstr("tensor '")));
  }
  EXPECT_GT(nth, 100u);
  EXPECT_LT(nth, 2000u);
}

}  // namespace
}  // namespace sluice
