// Other state formats and another update rule, through the whole runtime: every pair of them, with
// states on each tier, gives the numbers of plain arithmetic. In simulation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"
#include "tests/optim/other_states.h"

namespace sluice {
namespace {

using ::testing::AnyOf;
using testing::ConfigOf;
using ::testing::HasSubstr;
using testing::Masters;
using testing::OddModel;
using testing::Outcome;
using testing::ReferenceUpdate;
using testing::SgdHyper;
using testing::Trainer;
using testing::TrainerOptions;

// A format, and what the arithmetic of its fields and the bytes of its chunks must be.
struct FormatCase {
  StateFormatMaker make;
  bool rounds_moments;   // to bf16
  int64_t master_bytes;  // an element, beside a bf16 copy
  int64_t moment_bytes;
};
constexpr FormatCase kFormats[] = {{MakeFp32States, false, 4, 4},
                                   {testing::Bf16Moments::Make, true, 4, 2},
                                   {testing::SplitMasters::Make, false, 3, 4}};

const std::vector<SgdHyper> kSgdGroups = {{.lr = 1e-2f, .weight_decay = 0.1f},
                                          {.lr = 3e-2f, .momentum = 0.5f}};

struct RuleCase {
  std::shared_ptr<const UpdateRule> (*make)();
  std::vector<Hyperparameters> groups;
  std::vector<Field> moments;
};
std::vector<RuleCase> Rules() {
  return {{MakeAdamW, testing::Groups(), {Field::kExpAvg, Field::kExpAvgSq}},
          {testing::Sgd::Make, testing::GroupsOf(kSgdGroups), {testing::kMomentumBuffer}}};
}

std::string NameOf(const FormatCase& format, const RuleCase& rule) {
  const auto made = rule.make();
  return fmt::format("{} over {}", made->name(), format.make(made->fields())->name());
}

// One element's update in plain arithmetic: `moments` are its values of the rule's other fields.
void UpdateElement(const ReferenceUpdate& u, bool adamw, float grad, float* p, float* moments) {
  float g = grad * u.grad_scale;
  if (!adamw) {
    const SgdHyper& h = kSgdGroups[u.group];
    g += h.weight_decay * *p;
    moments[0] = u.step == 1 ? g : h.momentum * moments[0] + g;
    *p -= h.lr * moments[0];
    return;
  }
  const AdamWHyper h = testing::AdamWGroups()[u.group];
  if (h.decay_mode == WeightDecayMode::kL2) {
    g += static_cast<float>(h.weight_decay) * *p;
  } else {
    *p *= static_cast<float>(1 - h.lr * h.weight_decay);
  }
  const auto t = static_cast<double>(u.step);
  moments[0] += static_cast<float>(1 - h.beta1) * (g - moments[0]);
  moments[1] = static_cast<float>(h.beta2) * moments[1] + static_cast<float>(1 - h.beta2) * (g * g);
  const float d = std::sqrt(moments[1]) / static_cast<float>(std::sqrt(1 - std::pow(h.beta2, t))) +
                  static_cast<float>(h.eps);
  *p -= static_cast<float>(h.lr / (1 - std::pow(h.beta1, t))) * (moments[0] / d);
}

float RoundedToBf16(float value) {
  return ToFloat(FromFloat(value, FloatType::kBf16), FloatType::kBf16);
}

// Masters first, then each moment, by tensor.
std::vector<Masters> Expected(const ModelSpec& spec, const TrainerOptions& options,
                              const FormatCase& format, const RuleCase& rule) {
  std::vector<Masters> all(1 + rule.moments.size(), Masters(spec.tensors.size()));
  const bool adamw = rule.moments.size() == 2;
  all[0] = testing::TrainReferenceBy(spec, options, [&](const ReferenceUpdate& u) {
    const size_t n = u.master->size();
    std::vector<float> grad(n);
    Convert(u.grad, u.types.grad, grad.data(), FloatType::kF32, n);
    for (size_t m = 1; m < all.size(); ++m) all[m][u.tensor].resize(n);
    for (size_t i = 0; i < n; ++i) {
      float moments[2] = {};
      for (size_t m = 1; m < all.size(); ++m) moments[m - 1] = all[m][u.tensor][i];
      UpdateElement(u, adamw, grad[i], &(*u.master)[i], moments);
      for (size_t m = 1; m < all.size(); ++m)
        all[m][u.tensor][i] =
            format.rounds_moments ? RoundedToBf16(moments[m - 1]) : moments[m - 1];
    }
  });
  return all;
}

RuntimeConfig ConfigFor(uint64_t seed, Tier tier, const ModelSpec& spec, const FormatCase& format,
                        const RuleCase& rule) {
  RuntimeConfig config = ConfigOf(seed);
  config.rule = rule.make();
  config.format = format.make;
  config.budgets.hbm = MiB(8);
  config.budgets.pinned = MiB(8);
  if (tier == Tier::kHbm) {
    config.placement.lowest_state_tier = Tier::kHbm;
    config.highest_state_tier_on_host = Tier::kHbm;
  }
  if (tier == Tier::kNvme) {
    // Parameters in HBM for good, or on the drives like the states.
    config.budgets = testing::SmallestBudgets(spec, config);
    if (seed % 2 == 0) config.budgets.hbm = MiB(8);
  } else {
    config.nvme_paths.clear();
    if (tier == Tier::kPinned && seed % 2 == 0) config.budgets.hbm = KiB(200);
  }
  return config;
}

ModelSpec ModelOf(uint64_t seed) { return seed % 3 == 0 ? testing::MixedModel(seed) : OddModel(); }

constexpr Tier kTiers[] = {Tier::kHbm, Tier::kPinned, Tier::kNvme};

// f(seed, tier, format, rule) for every combination.
template <typename F>
void ForAll(uint64_t seeds, F&& f) {
  for (const uint64_t seed : Seeds(seeds)) {
    for (const RuleCase& rule : Rules()) {
      for (const FormatCase& format : kFormats) {
        for (const Tier tier : kTiers) {
          SCOPED_TRACE(fmt::format("seed {}, {}, tier {}", seed, NameOf(format, rule),
                                   static_cast<int>(tier)));
          f(seed, tier, format, rule);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(StateFormatsTest, EveryPairOnEveryTierIsExact) {
  ForAll(8, [](uint64_t seed, Tier tier, const FormatCase& format, const RuleCase& rule) {
    const ModelSpec spec = ModelOf(seed);
    const RuntimeConfig config = ConfigFor(seed, tier, spec, format, rule);
    TrainerOptions options{.steps = 3, .micro_steps = 1 + static_cast<int>(seed % 2)};
    options.groups = rule.groups;
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    Trainer trainer(sim->runtime.get(), spec, options);
    const absl::Status trained = trainer.Run();
    ASSERT_TRUE(trained.ok()) << trained;
    const std::vector<Masters> expected = Expected(spec, options, format, rule);
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      EXPECT_EQ(trainer.Read(t, Field::kMaster).value(), expected[0][t]) << "tensor " << t;
      if (spec.tensors[t].keep == Keep::kParam) continue;
      const ElementType copy = options.TypesOf(spec, t).param;
      EXPECT_EQ(trainer.Read(t, Field::kParam).value(),
                testing::ValuesOf(testing::ParamsOf(expected[0][t], copy), copy));
      for (size_t m = 0; m < rule.moments.size(); ++m) {
        EXPECT_EQ(trainer.Read(t, rule.moments[m]).value(), expected[m + 1][t])
            << "tensor " << t << ", moment " << m;
      }
    }
    EXPECT_EQ(testing::Settle(&*sim), "");
  });
}

// What is counted is what the drives see: the states of every chunk each way, and the copies on
// drives, which a format that keeps part of the masters there also reads.
TEST(StateFormatsTest, TrafficCountsTheCopiesThatUpdatesRead) {
  for (const RuleCase& rule : Rules()) {
    const auto traffic_of = [&](const FormatCase& format) {
      RuntimeConfig config = ConfigOf(1);
      config.rule = rule.make();
      config.format = format.make;
      config.placement.resident_elements_max = 0;
      config.budgets = testing::SmallestBudgets(OddModel(), config);
      const absl::StatusOr<Plan> plan = MakePlan(OddModel(), config);
      SLUICE_CHECK(plan.ok());
      const StepTraffic traffic = TrafficOf(plan->layout, plan->placement);
      Bytes copies;
      for (const ChunkLayout& chunk : plan->layout.chunks()) {
        if (plan->placement.param_home[chunk.unit.value()] == Tier::kNvme)
          copies += RoundUp(chunk.param_bytes(), plan->placement.io_alignment);
      }
      EXPECT_GT(copies, Bytes(0));
      const Bytes others = plan->placement.states_nvme + plan->placement.grads_nvme;
      EXPECT_EQ(traffic.nvme_written, others + copies);
      return std::pair(traffic.nvme_read - others, copies);
    };
    const auto [without, copies] = traffic_of(kFormats[0]);
    EXPECT_EQ(traffic_of(kFormats[1]).first, without);
    EXPECT_EQ(traffic_of(kFormats[2]).first, without + copies);
  }
}

// Every third read or copy fails, each in a run of its own, where updates read states and copies.
TEST(StateFormatsTest, AFailedReadOfACopyEndsInAClearErrorAndEverythingComesBack) {
  const RuleCase rule = Rules()[0];
  const TrainerOptions options{.steps = 2};
  const Masters masters = Expected(OddModel(), options, kFormats[2], rule)[0];
  for (const bool params_in_hbm : {false, true}) {
    // An even seed has room for all parameters in HBM.
    const RuntimeConfig config =
        ConfigFor(params_in_hbm ? 4 : 5, Tier::kNvme, OddModel(), kFormats[2], rule);
    for (const auto& [seam, fault] :
         {std::pair(SimSeam::kCopy, SimFault::kError), std::pair(SimSeam::kRead, SimFault::kError),
          std::pair(SimSeam::kRead, SimFault::kCorrupt)}) {
      uint64_t nth = 1;
      for (; nth < 3000 && !HasFailure(); nth += 3) {
        SCOPED_TRACE(
            fmt::format("{}, seam {}, the {}th", params_in_hbm, static_cast<int>(seam), nth));
        const auto faults = [&](SimFaults* f) {
          f->Script(seam, fault, nth, SimFaults::Repeat::kOnce);
        };
        const Outcome outcome =
            testing::Simulate(OddModel(), config, {.seed = 2, .faults = faults}, options);
        EXPECT_EQ(outcome.unsettled, "");
        if (outcome.faults == 0) break;
        EXPECT_FALSE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
        if (outcome.status.ok()) {  // what was read ahead was not needed
          EXPECT_TRUE(testing::SameBits(outcome.masters, masters));
          continue;
        }
        EXPECT_THAT(std::string(Message(outcome.status)),
                    AnyOf(HasSubstr("unit '"), HasSubstr("tensor '")));
      }
      EXPECT_GT(nth, 30u);
      EXPECT_LT(nth, 3000u);
    }
  }
}

// Each field of each tensor, one after another: what lies beside it stays.
TEST(StateFormatsTest, ValuesAreReadAsTheyWereWritten) {
  ForAll(2, [](uint64_t seed, Tier tier, const FormatCase& format, const RuleCase& rule) {
    const ModelSpec spec = OddModel();
    const RuntimeConfig config = ConfigFor(seed, tier, spec, format, rule);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    Trainer trainer(sim->runtime.get(), spec, {});
    ASSERT_TRUE(trainer.Load().ok());
    std::vector<Field> fields = rule.moments;
    fields.push_back(Field::kMaster);
    std::map<std::pair<uint32_t, Field>, std::vector<float>> written;
    for (const Field field : fields) {
      for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
        std::vector<float> values =
            testing::InitialValues(t + 50 * static_cast<uint32_t>(field), spec.tensors[t].elements);
        ASSERT_TRUE(
            trainer
                .Wait(sim->runtime->Access({.write = true,
                                            .tensor = TensorIndex(t),
                                            .field = field,
                                            .data = reinterpret_cast<std::byte*>(values.data()),
                                            .type = FloatType::kF32,
                                            .done = nullptr}))
                .ok());
        if (field != Field::kMaster && format.rounds_moments) {
          for (float& value : values) value = RoundedToBf16(value);
        }
        written[{t, field}] = std::move(values);
      }
    }
    for (const auto& [where, values] : written)
      ASSERT_EQ(trainer.Read(where.first, where.second).value(), values)
          << "tensor " << where.first << ", field " << static_cast<int>(where.second);
  });
}

TEST(StateFormatsTest, PlacementsHoldTheBytesOfTheFormat) {
  ForAll(6, [](uint64_t seed, Tier tier, const FormatCase& format, const RuleCase& rule) {
    const ModelSpec spec = ModelOf(seed);
    const RuntimeConfig config = ConfigFor(seed, tier, spec, format, rule);
    const absl::StatusOr<Plan> plan = MakePlan(spec, config);
    ASSERT_TRUE(plan.ok()) << plan.status();
    Bytes expected, largest;
    for (const ChunkLayout& chunk : plan->layout.chunks()) {
      const bool bf16 = chunk.types.param == ElementType(FloatType::kBf16);
      const int64_t element = (bf16 ? format.master_bytes : 4) +
                              format.moment_bytes * static_cast<int64_t>(rule.moments.size());
      const Bytes states(chunk.keep == Keep::kParam ? 0 : element * chunk.capacity);
      EXPECT_EQ(chunk.state_bytes(), states);
      expected += RoundUp(states, kSlotAlignment);
      largest = std::max(largest, RoundUp(states, kSlotAlignment));
    }
    const Placement& p = plan->placement;
    EXPECT_EQ(p.states_hbm + p.states_pinned + p.states_nvme, expected);
    EXPECT_EQ(p.states_hbm > Bytes(0), tier == Tier::kHbm);
    EXPECT_EQ(p.states_nvme > Bytes(0), tier == Tier::kNvme);
    if (tier != Tier::kHbm) {
      EXPECT_EQ(p.state_buffer_bytes, largest);
    }
  });
}

TEST(StateFormatsTest, AFieldThatTheRuleDoesNotKeepIsRefusedByName) {
  for (const RuleCase& rule : Rules()) {
    RuntimeConfig config = ConfigFor(1, Tier::kPinned, OddModel(), kFormats[0], rule);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(OddModel(), config, {.seed = 1});
    ASSERT_TRUE(sim.ok()) << sim.status();
    Trainer trainer(sim->runtime.get(), OddModel(), {});
    ASSERT_TRUE(trainer.Load().ok());
    for (const RuleCase& other : Rules()) {
      if (other.make == rule.make) continue;
      for (const Field field : other.moments) {
        const absl::Status refused = trainer.Read(2, field).status();
        EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
        const std::string text(Message(refused));
        EXPECT_THAT(text, HasSubstr(fmt::format("no field {}:", static_cast<int>(field))));
        EXPECT_THAT(text, HasSubstr(fmt::format("{} keeps master (1), ", config.rule->name())));
      }
    }
  }
}

TEST(StateFormatsTest, StatesThatNoKernelOfTheGpuUpdatesAreRefusedWhereTheyMustBeThere) {
  for (const RuleCase& rule : Rules()) {
    for (const FormatCase& format : kFormats) {
      SCOPED_TRACE(NameOf(format, rule));
      for (const Tier tier : kTiers) {
        RuntimeConfig config = ConfigOf(1);
        config.rule = rule.make();
        config.format = format.make;
        config.placement.lowest_state_tier = tier;
        const absl::Status made =
            MakePlanInput(OddModel(), config, {.kind = DeviceKind::kCuda, .memory_free = GiB(8)})
                .status();
        const bool has_kernel = rule.make == MakeAdamW && format.make == MakeFp32States;
        EXPECT_EQ(made.ok(), has_kernel || tier != Tier::kHbm) << made;
        if (made.ok()) continue;
        EXPECT_TRUE(absl::IsUnimplemented(made)) << made;
        const std::string text(Message(made));
        EXPECT_THAT(text, HasSubstr(fmt::format("no CUDA kernel for {}", config.rule->name())));
        EXPECT_THAT(text,
                    HasSubstr(fmt::format("'{}'", format.make(config.rule->fields())->name())));
        EXPECT_THAT(text, HasSubstr("offload_optimizer"));
      }
    }
  }
}

}  // namespace
}  // namespace sluice
