// Gradients of lent tensors, which may be lent too.

#include <cmath>
#include <deque>

#include "tests/offload/lent.h"

namespace sluice {
namespace {

using testing::AdamWGroups;
using testing::ConfigOf;
using testing::Groups;
using testing::InitialValues;
using testing::kGradType;
using testing::LentConfig;
using testing::MakeGradient;
using testing::Params;
using testing::ParamsOf;
using testing::Trainer;

class LentGradientsTest : public testing::LentTest {};
INSTANTIATE_TEST_SUITE_P(All, LentGradientsTest, ::testing::ValuesIn(testing::kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(LentGradientsTest, AGradientThatIsLentIsTheCallersAndTheOnlyOne) {
  ModelSpec spec = Model();
  spec.units.push_back({.name = "kept"});
  spec.tensors.push_back({.name = "kept",
                          .unit = UnitIndex(static_cast<uint32_t>(spec.units.size() - 1)),
                          .elements = 10});
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, ConfigOf(2), {.seed = 2});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* const runtime = sim->runtime.get();
  Trainer trainer(runtime, spec, kind().options());
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
                                         .type = kGradType,
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
TEST_P(LentGradientsTest, CallsKeepTheirOrderWhileUpdatesReadWhatCameBefore) {
  const ModelSpec spec = Model();
  const size_t tensors = spec.tensors.size();
  for (const uint64_t seed : Seeds(40)) {
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, LentConfig(seed, spec), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Trainer trainer(runtime, spec, kind().options());
    ASSERT_TRUE(trainer.Load().ok());
    uint64_t dice = testing::Mix(seed + 5);
    const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
    Params params(kind(), spec);
    std::deque<std::vector<std::byte>> memory;  // of gradients
    std::vector<Ticket> tickets;
    std::vector<std::vector<float>> m(tensors), v(tensors), master(tensors);
    std::vector<std::vector<std::byte>> noise;  // that gradients are made of
    std::vector<int64_t> updates(tensors, 0);
    for (uint32_t t = 0; t < tensors; ++t) {
      master[t] = InitialValues(t, spec.tensors[t].elements);
      noise.push_back(ParamsOf(master[t], kGradType));
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
              memory.emplace_back(MakeGradient(static_cast<int>(draw(1000)), t, noise[t].data(),
                                               kGradType, kGradType, spec.tensors[t].elements));
          lent[t] = sums[t].empty() && draw(2) == 0;
          given.push_back({TensorIndex(t), grad, lent[t]});
          if (sums[t].empty()) {
            sums[t] = grad;
          } else {
            Accumulate(sums[t].data(), grad.data(), kGradType, master[t].size());
          }
        }
        if (!given.empty()) tickets.push_back(runtime->PushGrads(given));
      }
      runtime->EndIteration();
      tickets.push_back(runtime->Step({.groups = Groups(), .lent = params.places, .clip_norm = 0}));
      for (uint32_t t = 0; t < tensors; ++t) {
        if (sums[t].empty()) continue;
        const ScopedFlushDenormals flush;
        AdamWUpdate(MakeCoefficients(AdamWGroups()[spec.tensors[t].group], ++updates[t], 1.0f),
                    {.master = master[t],
                     .exp_avg = m[t],
                     .exp_avg_sq = v[t],
                     .grad = sums[t].data(),
                     .grad_type = kGradType});
      }
    }
    for (const Ticket ticket : tickets) ASSERT_EQ(trainer.Wait(ticket), absl::OkStatus()) << seed;
    ASSERT_EQ(trainer.Wait(runtime->Drain()), absl::OkStatus());
    for (uint32_t t = 0; t < tensors; ++t) {
      ASSERT_EQ(trainer.Read(t, Field::kExpAvg).value(), m[t]) << "seed " << seed << ", " << t;
      ASSERT_EQ(params.values[t], kind().Rounded(master[t])) << "seed " << seed << ", " << t;
      if (spec.tensors[t].keep == Keep::kMoments) continue;
      ASSERT_EQ(trainer.Read(t, Field::kMaster).value(), master[t]) << "seed " << seed << ", " << t;
    }
  }
}

// What a step does to a lent parameter whose gradient was pushed, set, added to or cleared, in
// whatever order, is what it does to one whose gradient was pushed as it came out.
TEST_P(LentGradientsTest, GradientsOfLentParametersMayBeSetAndCleared) {
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
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(Model(), ConfigOf(1), {.seed = 1});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* runtime = sim->runtime.get();
    Trainer trainer(runtime, Model(), kind().options());
    ASSERT_TRUE(trainer.Load().ok());
    std::vector<std::vector<std::byte>> gradients;
    for (const float value : {1.0f, 2.0f, 4.0f})
      gradients.push_back(ParamsOf(std::vector<float>(kElements, value), kGradType));
    for (size_t i = 0; i < c.calls.size(); ++i) {
      std::vector<std::byte>& gradient = gradients[i];
      const ValueRequest set = {.write = true,
                                .tensor = TensorIndex(0),
                                .field = Field::kGrad,
                                .data = gradient.data(),
                                .type = kGradType,
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
    Params params(kind(), Model());
    std::vector<ParamPlace> places(Model().tensors.size());
    if (c.expected != 0) places[0] = params.places[0];
    ASSERT_EQ(trainer.Wait(runtime->Step({.groups = Groups(), .lent = places, .clip_norm = 0})),
              absl::OkStatus());
    ASSERT_EQ(trainer.Wait(runtime->Drain()), absl::OkStatus());
    EXPECT_NEAR(runtime->last_step().grad_norm, c.expected * std::sqrt(double{kElements}), 1e-9);
    EXPECT_EQ(runtime->tensor_step(TensorIndex(0)), c.expected != 0 ? 1 : 0);
    EXPECT_EQ(params.values[0] == kind().Rounded(InitialValues(0, kElements)), c.expected == 0);
    // exp_avg begins at 0: a tenth of the gradient.
    const float tenth = MakeCoefficients(AdamWGroups()[0], 1, 1.0f).one_minus_beta1 * c.expected;
    EXPECT_EQ(trainer.Read(0, Field::kExpAvg).value(), std::vector<float>(kElements, tenth));
  }
}

}  // namespace
}  // namespace sluice
