// What of a tensor is kept: frozen tensors have a compute copy only. The rest of the model must
// come out as if they had never been there. Lent ones: lent_test.cc.

#include <gtest/gtest.h>

#include <cmath>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "offload/sim/sim_factory.h"
#include "tests/core/seeds.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using testing::Groups;
using testing::InitialValues;
using testing::MakeGradient;
using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

constexpr FloatType kType = FloatType::kBf16;
const TrainerOptions kOptions{.steps = 3};

RuntimeConfig ConfigOf(uint64_t seed) {
  SimWorld dice(seed ^ 0x4ee9);
  RuntimeConfig config;
  config.types.param = kType;
  config.types.grad = kType;
  config.placement.resident_elements_max = dice.OneIn(2) ? 100 : 6000;
  config.placement.state_buffers = static_cast<int>(dice.Uniform(2, 6));
  config.placement.param_buffers = static_cast<int>(dice.Uniform(2, 6));
  config.chunk_elements = kCellElements * static_cast<int64_t>(dice.Uniform(1, 3));
  config.budgets = {KiB(static_cast<int64_t>(dice.Uniform(90, 320))),
                    KiB(static_cast<int64_t>(dice.Uniform(640, 2200))), GiB(1)};
  config.nvme_paths = {"simulated"};
  return config;
}

// Some tensors of most units, and one unit whole.
ModelSpec PartlyFrozen() {
  ModelSpec spec = OddModel();
  for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
    const bool whole_unit = spec.tensors[t].unit.value() == 2;
    if (whole_unit || t % 3 == 1) spec.tensors[t].keep = Keep::kParam;
  }
  return spec;
}

// The tensors that are updated, alone, and for each tensor of `spec` its number among them.
ModelSpec UpdatedOnly(const ModelSpec& spec, std::vector<uint32_t>* number) {
  ModelSpec only = spec;
  only.tensors.clear();
  for (const ModelSpec::Tensor& tensor : spec.tensors) {
    number->push_back(static_cast<uint32_t>(only.tensors.size()));
    if (tensor.keep != Keep::kParam) only.tensors.push_back(tensor);
  }
  return only;
}

std::vector<std::byte> Rounded(const std::vector<float>& values) {
  std::vector<std::byte> result(values.size() * 2);
  Convert(values.data(), FloatType::kF32, result.data(), kType, values.size());
  return result;
}

std::vector<float> FrozenValues(uint32_t tensor, int64_t elements) {
  return InitialValues(1000 + tensor, elements);
}

class Driver {
 public:
  Driver(OffloadRuntime* runtime, ModelSpec spec)
      : runtime_(runtime), spec_(std::move(spec)), trainer_(runtime, spec_, kOptions) {
    expected_ = testing::TrainReference(UpdatedOnly(spec_, &number_), kOptions);
  }

  absl::Status Write(uint32_t t, std::vector<float> values) {
    return trainer_.Wait(runtime_->Access({.write = true,
                                           .tensor = TensorIndex(t),
                                           .field = Field::kMaster,
                                           .data = reinterpret_cast<std::byte*>(values.data()),
                                           .type = FloatType::kF32,
                                           .done = nullptr}));
  }

  // Trains a model that is partly frozen.
  absl::Status Train() {
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      SLUICE_RETURN_IF_ERROR(Write(t, frozen(t)
                                          ? FrozenValues(t, spec_.tensors[t].elements)
                                          : InitialValues(number_[t], spec_.tensors[t].elements)));
    }
    for (int step = 0; step < kOptions.steps; ++step) {
      runtime_->BeginIteration(1, true);
      for (uint32_t u = 0; u < spec_.units.size(); ++u) SLUICE_RETURN_IF_ERROR(Visit(u, nullptr));
      std::vector<std::vector<std::byte>> grads(spec_.tensors.size());
      for (uint32_t u = static_cast<uint32_t>(spec_.units.size()); u > 0; --u) {
        step_ = step;
        SLUICE_RETURN_IF_ERROR(Visit(u - 1, &grads));
      }
      runtime_->EndIteration();
      for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
        if (!frozen(t))
          SLUICE_RETURN_IF_ERROR(trainer_.Wait(runtime_->PushGrad(TensorIndex(t), grads[t])));
      }
      SLUICE_RETURN_IF_ERROR(trainer_.Wait(
          runtime_->Step({.groups = Groups(), .lent = {}, .clip_norm = kOptions.clip_norm})));
    }
    return absl::OkStatus();
  }

  void ExpectExact(uint64_t seed) {
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      std::vector<float> expected;
      if (frozen(t)) {
        expected.resize(static_cast<size_t>(spec_.tensors[t].elements));
        Convert(Rounded(FrozenValues(t, spec_.tensors[t].elements)).data(), kType, expected.data(),
                FloatType::kF32, expected.size());
        EXPECT_EQ(trainer_.Read(t, Field::kExpAvg).status().code(), absl::StatusCode::kNotFound);
      } else {
        expected = expected_[number_[t]];
      }
      const absl::StatusOr<std::vector<float>> got = trainer_.Read(t, Field::kMaster);
      ASSERT_TRUE(got.ok()) << "seed " << seed << ": " << got.status();
      ASSERT_EQ(*got, expected) << "seed " << seed << ", tensor " << spec_.tensors[t].name;
    }
  }

 private:
  bool frozen(uint32_t t) const { return spec_.tensors[t].keep == Keep::kParam; }

  // What forward (grads: null) or backward does with a unit: looks at its parameters.
  absl::Status Visit(uint32_t u, std::vector<std::vector<std::byte>>* grads) {
    const UnitIndex unit(u);
    SLUICE_RETURN_IF_ERROR(trainer_.Wait(runtime_->Acquire(unit)));
    SLUICE_ASSIGN_OR_RETURN(DlManagedTensor * view, runtime_->MakeView(unit));
    const auto* params = static_cast<const std::byte*>(view->dl_tensor.data);
    for (TensorIndex t : runtime_->layout().unit(unit).tensors) {
      const TensorLayout& tensor = runtime_->layout().tensor(t);
      const std::byte* mine = params + tensor.offset * 2;
      if (frozen(t.value())) {
        const std::vector<std::byte> bytes = Rounded(FrozenValues(t.value(), tensor.elements));
        EXPECT_EQ(0, std::memcmp(mine, bytes.data(), bytes.size())) << tensor.name;
      } else if (grads != nullptr) {
        (*grads)[t.value()] =
            MakeGradient(step_ * 16, number_[t.value()], mine, kType, kType, tensor.elements);
      }
    }
    SLUICE_RETURN_IF_ERROR(runtime_->Release(unit));
    view->deleter(view);
    return absl::OkStatus();
  }

  OffloadRuntime* const runtime_;
  const ModelSpec spec_;
  Trainer trainer_;
  std::vector<uint32_t> number_;
  std::vector<std::vector<float>> expected_;
  int step_ = 0;
};

TEST(KeepTest, FrozenTensorsNeedNoStatesAndNoGradients) {
  const ModelSpec spec = PartlyFrozen();
  std::vector<uint32_t> number;
  ModelSpec only = UpdatedOnly(spec, &number);
  std::erase_if(only.units, [](const ModelSpec::Unit& unit) { return unit.name == "block1"; });
  for (ModelSpec::Tensor& tensor : only.tensors) {
    if (tensor.unit.value() > 2) tensor.unit = UnitIndex(tensor.unit.value() - 1);
  }
  const Budgets budgets = {MiB(64), MiB(64), GiB(1)};
  const auto with = ModelLayout::Make(spec, kCellElements);
  const auto without = ModelLayout::Make(only, kCellElements);
  ASSERT_TRUE(with.ok() && without.ok());
  const auto large = MakePlacement(*with, budgets, {});
  const auto small = MakePlacement(*without, budgets, {});
  ASSERT_TRUE(large.ok() && small.ok());
  EXPECT_EQ(large->grads_pinned, small->grads_pinned);
  EXPECT_EQ(large->states_pinned, small->states_pinned);
  EXPECT_GT(large->hbm(), small->hbm());
  EXPECT_EQ(with->updated_count(), without->parameter_count());
}

TEST(KeepTest, AModelThatIsPartlyFrozenIsExactForEverySeed) {
  for (const uint64_t seed : Seeds(30)) {
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(PartlyFrozen(), ConfigOf(seed), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    Driver driver(sim->runtime.get(), PartlyFrozen());
    const absl::Status status = driver.Train();
    ASSERT_TRUE(status.ok()) << "seed " << seed << ": " << status;
    driver.ExpectExact(seed);
  }
}

TEST(KeepTest, AModelThatIsFrozenWholeWritesNothingAfterItWasLoaded) {
  ModelSpec spec = OddModel();
  for (ModelSpec::Tensor& tensor : spec.tensors) tensor.keep = Keep::kParam;
  RuntimeConfig config = ConfigOf(1);
  config.budgets = {KiB(120), KiB(64), GiB(1)};
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* runtime = sim->runtime.get();
  Driver driver(runtime, spec);
  ASSERT_TRUE(driver.Train().ok());  // whose steps have no gradient
  driver.ExpectExact(1);
  const StepTraffic traffic = runtime->Traffic();
  EXPECT_EQ(traffic.nvme_written, Bytes(0));
  EXPECT_GT(traffic.nvme_read, Bytes(0));
  std::vector<std::byte> gradient(5003 * 2);
  Trainer trainer(runtime, spec, kOptions);
  const absl::Status status = trainer.Wait(runtime->PushGrad(TensorIndex(0), gradient));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

}  // namespace
}  // namespace sluice
