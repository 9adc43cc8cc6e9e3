// Gradients of lent parameters, which the caller keeps: pushed, set, added to and cleared.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Groups;
using testing::InitialValues;
using testing::OddModel;
using testing::ParamsOf;
using testing::Trainer;
using testing::TrainerOptions;

constexpr FloatType kType = FloatType::kBf16;
const TrainerOptions kOptions{.steps = 3};

ModelSpec LentModel() {
  ModelSpec spec = OddModel();
  for (ModelSpec::Tensor& tensor : spec.tensors) tensor.keep = Keep::kStates;
  return spec;
}

std::vector<std::byte> Rounded(const std::vector<float>& values) { return ParamsOf(values, kType); }

// What a step does to a lent parameter whose gradient was pushed, set, added to or cleared, in
// whatever order, is what it does to one whose gradient was pushed as it came out.
TEST(LentGradientsTest, MayBeSetAndCleared) {
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
    const float tenth = MakeCoefficients(Groups()[0], 1, 1.0f).one_minus_beta1 * c.expected;
    EXPECT_EQ(trainer.Read(0, Field::kExpAvg).value(), std::vector<float>(kElements, tenth));
  }
}

}  // namespace
}  // namespace sluice
