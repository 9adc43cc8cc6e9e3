// Lent tensors: their parameters stay in the caller's memory, and all else is kept. They come out
// as those of any model, and what a failure leaves of them is known.

#include <gtest/gtest.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "offload/sim/sim_factory.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using testing::AdamWGroups;
using testing::ConfigOf;
using testing::Groups;
using testing::InitialValues;
using testing::MakeGradient;
using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

constexpr FloatType kType = FloatType::kBf16;
const TrainerOptions kOptions{.steps = 3};

std::vector<std::byte> Rounded(const std::vector<float>& values) {
  std::vector<std::byte> result(values.size() * 2);
  Convert(values.data(), FloatType::kF32, result.data(), kType, values.size());
  return result;
}

enum class Lending { kNone, kSome, kAll };  // of gradients

// All of them, in calls of `size` tensors each.
absl::Status PushAll(OffloadRuntime* runtime, Trainer* trainer, Lending lending, size_t size,
                     const std::vector<std::vector<std::byte>>& grads) {
  std::vector<GivenGradient> given;
  for (uint32_t t = 0; t < grads.size(); ++t) {
    const bool lent = lending == Lending::kAll || (lending == Lending::kSome && t % 2 == 0);
    given.push_back({TensorIndex(t), grads[t], lent});
    if (given.size() < size && t + 1 < grads.size()) continue;
    SLUICE_RETURN_IF_ERROR(trainer->Wait(runtime->PushGrads(std::exchange(given, {}))));
  }
  return absl::OkStatus();
}

// Trains a model whose parameters stay here. Returns them and the masters.
absl::Status TrainLent(OffloadRuntime* runtime, const ModelSpec& spec,
                       std::vector<std::vector<std::byte>>* params,
                       std::vector<std::vector<float>>* masters, Lending lending = Lending::kNone,
                       size_t call_size = 1) {
  Trainer trainer(runtime, spec, kOptions);
  SLUICE_RETURN_IF_ERROR(trainer.Load());
  std::vector<ParamPlace> places;
  for (uint32_t t = 0; t < spec.tensors.size(); ++t)
    params->push_back(Rounded(InitialValues(t, spec.tensors[t].elements)));
  for (std::vector<std::byte>& param : *params) places.push_back({param.data(), kType});
  for (int step = 0; step < kOptions.steps; ++step) {
    runtime->BeginIteration(1, true);
    std::vector<std::vector<std::byte>> grads;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      // Waits for the unit's update, and for no more.
      const UnitIndex unit = spec.tensors[t].unit;
      SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->Acquire(unit)));
      grads.push_back(
          MakeGradient(step * 16, t, (*params)[t].data(), kType, kType, spec.tensors[t].elements));
      SLUICE_RETURN_IF_ERROR(runtime->Release(unit));
    }
    runtime->EndIteration();
    SLUICE_RETURN_IF_ERROR(PushAll(runtime, &trainer, lending, call_size, grads));
    SLUICE_RETURN_IF_ERROR(trainer.Wait(
        runtime->Step({.groups = Groups(), .lent = places, .clip_norm = kOptions.clip_norm})));
    if (lending != Lending::kNone) SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->Drain()));
  }
  for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
    SLUICE_ASSIGN_OR_RETURN(std::vector<float> master, trainer.Read(t, Field::kMaster));
    masters->push_back(std::move(master));
  }
  return absl::OkStatus();
}

ModelSpec LentModel() {
  ModelSpec spec = OddModel();
  for (ModelSpec::Tensor& tensor : spec.tensors) tensor.keep = Keep::kStates;
  return spec;
}

TEST(LentTest, LentParametersAreExactForEverySeedAndTakeNoRoom) {
  const auto expected = testing::TrainReference(LentModel(), kOptions);
  for (const uint64_t seed : Seeds(40)) {
    RuntimeConfig config = ConfigOf(seed);
    config.budgets.hbm = Bytes(0);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(LentModel(), config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    std::vector<std::vector<std::byte>> params;
    std::vector<std::vector<float>> masters;
    const absl::Status status = TrainLent(sim->runtime.get(), LentModel(), &params, &masters,
                                          static_cast<Lending>(seed % 3), 1 + seed % 7);
    ASSERT_TRUE(status.ok()) << "seed " << seed << ": " << status;
    ASSERT_EQ(masters, expected) << "seed " << seed;
    for (size_t t = 0; t < params.size(); ++t) {
      ASSERT_EQ(params[t], Rounded(expected[t])) << "seed " << seed << ", tensor " << t;
    }
  }
}

TEST(LentTest, AGradientThatIsLentIsTheCallersAndTheOnlyOne) {
  ModelSpec spec = LentModel();
  spec.units.push_back({.name = "kept"});
  spec.tensors.push_back({.name = "kept",
                          .unit = UnitIndex(static_cast<uint32_t>(spec.units.size() - 1)),
                          .elements = 10});
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, ConfigOf(2), {.seed = 2});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* const runtime = sim->runtime.get();
  Trainer trainer(runtime, spec, kOptions);
  ASSERT_TRUE(trainer.Load().ok());
  const TensorIndex lent(0), other(1), kept(static_cast<uint32_t>(spec.tensors.size() - 1));
  std::vector<std::byte> grad(20000);
  const auto view = [&](TensorIndex t) {
    return ConstMemoryView(grad).first(static_cast<size_t>(spec.tensors[t.value()].elements) * 2);
  };
  const auto give = [&](std::vector<std::pair<TensorIndex, bool>> tensors) {
    std::vector<GivenGradient> given;
    for (const auto& [t, is_lent] : tensors) given.push_back({t, view(t), is_lent});
    return trainer.Wait(runtime->PushGrads(given)).code();
  };
  constexpr auto kRefused = absl::StatusCode::kFailedPrecondition, kOk = absl::StatusCode::kOk;
  EXPECT_EQ(give({{lent, true}, {kept, true}}), kRefused);
  EXPECT_EQ(give({{lent, true}}), kOk) << "of what was refused, none was taken";
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(give({{lent, true}}), kRefused);
    EXPECT_EQ(give({{other, false}, {lent, false}}), kRefused);
    EXPECT_EQ(trainer.Read(1, Field::kGrad).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(trainer.Read(0, Field::kGrad).status().code(), kRefused);
    EXPECT_EQ(trainer
                  .Wait(runtime->Access({.write = true,
                                         .tensor = lent,
                                         .field = Field::kGrad,
                                         .data = grad.data(),
                                         .type = kType,
                                         .done = nullptr}))
                  .code(),
              kRefused);
    ASSERT_TRUE(runtime->ClearGrad(lent).ok());
    EXPECT_EQ(give({{lent, true}}), kOk) << "what was forgotten can be lent again";
  }
  runtime->ZeroGrad();
  EXPECT_EQ(give({{lent, false}, {other, true}}), kOk);
  EXPECT_EQ(give({{lent, true}}), kRefused);
}

// Calls of several tensors, of units whose update is under way and of others, with and without
// waiting for anything: each tensor's gradients are added in the order of the calls.
TEST(LentTest, CallsKeepTheirOrderWhileUpdatesReadWhatCameBefore) {
  const ModelSpec spec = LentModel();
  const size_t tensors = spec.tensors.size();
  for (const uint64_t seed : Seeds(40)) {
    RuntimeConfig config = ConfigOf(seed);
    config.budgets.hbm = Bytes(0);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Trainer trainer(runtime, spec, kOptions);
    ASSERT_TRUE(trainer.Load().ok());
    uint64_t dice = testing::Mix(seed + 5);
    const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
    std::vector<std::vector<std::byte>> params;
    std::vector<ParamPlace> places;
    for (uint32_t t = 0; t < tensors; ++t)
      params.push_back(Rounded(InitialValues(t, spec.tensors[t].elements)));
    for (std::vector<std::byte>& param : params) places.push_back({param.data(), kType});
    std::deque<std::vector<std::byte>> memory;  // of gradients
    std::vector<Ticket> tickets;
    std::vector<std::vector<float>> m(tensors), v(tensors), master(tensors);
    std::vector<int64_t> updates(tensors, 0);
    for (uint32_t t = 0; t < tensors; ++t) {
      master[t] = InitialValues(t, spec.tensors[t].elements);
      m[t].resize(master[t].size());
      v[t].resize(master[t].size());
    }
    for (int step = 0; step < 3; ++step) {
      std::vector<std::vector<std::byte>> sums(tensors);
      std::vector<bool> lent(tensors, false);
      runtime->BeginIteration(1, true);
      for (int call = 0; call < 6; ++call) {
        std::vector<GivenGradient> given;
        for (uint32_t t = 0; t < tensors; ++t) {
          if (lent[t] || draw(3) != 0) continue;
          const auto& grad =
              memory.emplace_back(MakeGradient(static_cast<int>(draw(1000)), t, params[t].data(),
                                               kType, kType, spec.tensors[t].elements));
          lent[t] = sums[t].empty() && draw(2) == 0;
          given.push_back({TensorIndex(t), grad, lent[t]});
          if (sums[t].empty()) {
            sums[t] = grad;
          } else {
            Accumulate(sums[t].data(), grad.data(), kType, master[t].size());
          }
        }
        if (!given.empty()) tickets.push_back(runtime->PushGrads(given));
      }
      runtime->EndIteration();
      tickets.push_back(runtime->Step({.groups = Groups(), .lent = places, .clip_norm = 0}));
      for (uint32_t t = 0; t < tensors; ++t) {
        if (sums[t].empty()) continue;
        const ScopedFlushDenormals flush;
        AdamWUpdate(MakeCoefficients(AdamWGroups()[spec.tensors[t].group], ++updates[t], 1.0f),
                    {.master = master[t],
                     .exp_avg = m[t],
                     .exp_avg_sq = v[t],
                     .grad = sums[t].data(),
                     .grad_type = kType});
      }
    }
    for (const Ticket ticket : tickets) ASSERT_EQ(trainer.Wait(ticket), absl::OkStatus()) << seed;
    for (uint32_t t = 0; t < tensors; ++t) {
      ASSERT_EQ(trainer.Read(t, Field::kMaster).value(), master[t]) << "seed " << seed << ", " << t;
      ASSERT_EQ(params[t], Rounded(master[t])) << "seed " << seed << ", " << t;
    }
  }
}

// Wherever an update fails: once a drain has said so, nothing writes the caller's memory, and what
// was written of each parameter is counted.
TEST(LentTest, AfterAFailureADrainReturnsWhenLentParametersAreLeftAlone) {
  int failures = 0;
  for (const uint64_t seed : Seeds(40)) {
    RuntimeConfig config = ConfigOf(seed);
    config.budgets.hbm = Bytes(0);
    const auto faults = [&](SimFaults* f) {
      f->Script(SimSeam::kRead, SimFault::kCorrupt, 1 + seed % 23, SimFaults::Repeat::kOnce);
    };
    absl::StatusOr<SimRuntime> sim =
        MakeSimRuntime(LentModel(), config, {.seed = seed, .faults = faults});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    std::vector<std::vector<std::byte>> params;
    std::vector<std::vector<float>> masters;
    const auto lending = static_cast<Lending>(seed % 3);
    if (TrainLent(runtime, LentModel(), &params, &masters, lending, 4).ok()) continue;
    ++failures;
    Trainer trainer(runtime, LentModel(), kOptions);
    EXPECT_FALSE(trainer.Wait(runtime->Drain()).ok());
    const auto counts = [&] {
      std::vector<int64_t> result;
      for (uint32_t t = 0; t < params.size(); ++t)
        result.push_back(runtime->tensor_unwritten(TensorIndex(t)));
      return result;
    };
    const auto params_then = params;
    const auto counts_then = counts();
    EXPECT_EQ(testing::Settle(&*sim), "");
    EXPECT_EQ(params, params_then) << "seed " << seed;
    EXPECT_EQ(counts(), counts_then) << "seed " << seed;
    for (uint32_t t = 0; t < params.size(); ++t) {
      EXPECT_GE(counts_then[t], 0) << "seed " << seed;
      EXPECT_LE(counts_then[t], LentModel().tensors[t].elements) << "seed " << seed;
    }
  }
  EXPECT_GT(failures, 5);
}

TEST(LentTest, AStepSaysWhereLentParametersLie) {
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(LentModel(), ConfigOf(1), {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* runtime = sim->runtime.get();
  Trainer trainer(runtime, LentModel(), kOptions);
  ASSERT_TRUE(trainer.Load().ok());
  ASSERT_TRUE(trainer.Wait(runtime->Acquire(UnitIndex(0))).ok());
  EXPECT_EQ(runtime->MakeView(UnitIndex(0)).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(runtime->Release(UnitIndex(0)).ok());
  const std::vector<std::byte> gradient(5003 * 2, std::byte{0x3C});
  ASSERT_TRUE(trainer.Wait(runtime->PushGrad(TensorIndex(0), gradient)).ok());
  const auto step = [&](std::vector<ParamPlace> places) {
    return trainer.Wait(
        runtime->Step({.groups = Groups(), .lent = std::move(places), .clip_norm = 0}));
  };
  EXPECT_EQ(step({}).code(), absl::StatusCode::kInvalidArgument);
  std::vector<std::byte> param = Rounded(InitialValues(0, 5003));
  std::vector<ParamPlace> places(LentModel().tensors.size());
  places[0] = {param.data(), kType};
  EXPECT_TRUE(step(places).ok());  // what was refused has changed nothing
  EXPECT_EQ(runtime->tensor_step(TensorIndex(0)), 1);
  EXPECT_TRUE(trainer.Wait(runtime->Drain()).ok());  // it is written until then
}

TEST(LentTest, ALentParameterThatTheCallerChangedGoesIntoTheMaster) {
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(LentModel(), ConfigOf(1), {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* runtime = sim->runtime.get();
  Trainer trainer(runtime, LentModel(), kOptions);
  ASSERT_TRUE(trainer.Load().ok());
  std::vector<float> expected = InitialValues(0, 5003);
  std::vector<std::byte> param = Rounded(expected);
  const float changed = 0.75f;
  Convert(&changed, FloatType::kF32, param.data() + 2 * 4500, kType, 1);
  expected[4500] = changed;
  const std::vector<std::byte> gradient(5003 * 2);
  ASSERT_TRUE(trainer.Wait(runtime->PushGrad(TensorIndex(0), gradient)).ok());
  std::vector<ParamPlace> places(LentModel().tensors.size());
  places[0] = {param.data(), kType};
  std::vector<AdamWHyper> still = {{.lr = 0, .weight_decay = 0}, {.lr = 0, .weight_decay = 0}};
  ASSERT_TRUE(
      trainer
          .Wait(runtime->Step({.groups = testing::GroupsOf(still), .lent = places, .clip_norm = 0}))
          .ok());
  const absl::StatusOr<std::vector<float>> master = trainer.Read(0, Field::kMaster);
  ASSERT_TRUE(master.ok()) << master.status();
  EXPECT_EQ(*master, expected);
  EXPECT_EQ(param, Rounded(expected));
}

// What a step does to a lent parameter whose gradient was pushed, set, added to or cleared, in
// whatever order, is what it does to one whose gradient was pushed as it came out.
TEST(LentTest, GradientsOfLentParametersMayBeSetAndCleared) {
  constexpr int64_t kElements = 5003;
  enum class Call : uint8_t { kPush, kSet, kClear };
  struct Case {
    std::vector<Call> calls;  // with the gradients 1, 2, 4
    float expected;           // 0: none
  };
  const Case cases[] = {{{Call::kSet}, 1},
                        {{Call::kPush, Call::kSet}, 2},
                        {{Call::kSet, Call::kPush}, 3},
                        {{Call::kPush, Call::kClear}, 0},
                        {{Call::kSet, Call::kClear}, 0},
                        {{Call::kPush, Call::kClear, Call::kSet}, 4},
                        {{Call::kSet, Call::kClear, Call::kPush}, 4},
                        {{Call::kClear, Call::kSet, Call::kSet}, 4},
                        {{Call::kClear}, 0}};
  for (const Case& c : cases) {
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(LentModel(), ConfigOf(1), {.seed = 1});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* runtime = sim->runtime.get();
    Trainer trainer(runtime, LentModel(), kOptions);
    ASSERT_TRUE(trainer.Load().ok());
    std::vector<std::vector<std::byte>> gradients;
    for (const float value : {1.0f, 2.0f, 4.0f})
      gradients.push_back(Rounded(std::vector<float>(kElements, value)));
    for (size_t i = 0; i < c.calls.size(); ++i) {
      std::vector<std::byte>& gradient = gradients[i];
      const ValueRequest set = {.write = true,
                                .tensor = TensorIndex(0),
                                .field = Field::kGrad,
                                .data = gradient.data(),
                                .type = kType,
                                .done = nullptr};
      if (c.calls[i] == Call::kClear) {
        ASSERT_EQ(runtime->ClearGrad(TensorIndex(0)), absl::OkStatus());
      } else {
        ASSERT_EQ(
            trainer.Wait(c.calls[i] == Call::kSet ? runtime->Access(set)
                                                  : runtime->PushGrad(TensorIndex(0), gradient)),
            absl::OkStatus());
      }
    }
    std::vector<std::byte> param = Rounded(InitialValues(0, kElements));
    std::vector<ParamPlace> places(LentModel().tensors.size());
    if (c.expected != 0) places[0] = {param.data(), kType};
    ASSERT_EQ(trainer.Wait(runtime->Step({.groups = Groups(), .lent = places, .clip_norm = 0})),
              absl::OkStatus());
    ASSERT_EQ(trainer.Wait(runtime->Drain()), absl::OkStatus());
    EXPECT_NEAR(runtime->last_step().grad_norm, c.expected * std::sqrt(double{kElements}), 1e-9);
    EXPECT_EQ(runtime->tensor_step(TensorIndex(0)), c.expected != 0 ? 1 : 0);
    EXPECT_EQ(param == Rounded(InitialValues(0, kElements)), c.expected == 0);
    // exp_avg begins at 0: a tenth of the gradient.
    const float tenth = MakeCoefficients(AdamWGroups()[0], 1, 1.0f).one_minus_beta1 * c.expected;
    EXPECT_EQ(trainer.Read(0, Field::kExpAvg).value(), std::vector<float>(kElements, tenth));
  }
}

TEST(LentTest, AUnitIsLentWholeOrNotAtAll) {
  ModelSpec spec = LentModel();
  spec.tensors[2].keep = Keep::kAll;
  const absl::Status status = ModelLayout::Make(spec, kCellElements).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("block0"), std::string::npos) << status;
}

}  // namespace
}  // namespace sluice
