// What of a tensor is kept: frozen tensors have a compute copy only, lent ones all but the
// parameter. The rest of the model must come out as if they had never been there.

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "offload/sim_factory.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"
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
  EXPECT_EQ(large->grads, small->grads);
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

// Trains a model whose parameters stay here. Returns them and the masters.
absl::Status TrainLent(OffloadRuntime* runtime, const ModelSpec& spec,
                       std::vector<std::vector<std::byte>>* params,
                       std::vector<std::vector<float>>* masters) {
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
    for (uint32_t t = 0; t < spec.tensors.size(); ++t)
      SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->PushGrad(TensorIndex(t), grads[t])));
    SLUICE_RETURN_IF_ERROR(trainer.Wait(
        runtime->Step({.groups = Groups(), .lent = places, .clip_norm = kOptions.clip_norm})));
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

TEST(KeepTest, LentParametersAreExactForEverySeedAndTakeNoRoom) {
  const auto expected = testing::TrainReference(LentModel(), kOptions);
  for (const uint64_t seed : Seeds(40)) {
    RuntimeConfig config = ConfigOf(seed);
    config.budgets.hbm = Bytes(0);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(LentModel(), config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << "seed " << seed << ": " << sim.status();
    std::vector<std::vector<std::byte>> params;
    std::vector<std::vector<float>> masters;
    const absl::Status status = TrainLent(sim->runtime.get(), LentModel(), &params, &masters);
    ASSERT_TRUE(status.ok()) << "seed " << seed << ": " << status;
    ASSERT_EQ(masters, expected) << "seed " << seed;
    for (size_t t = 0; t < params.size(); ++t) {
      ASSERT_EQ(params[t], Rounded(expected[t])) << "seed " << seed << ", tensor " << t;
    }
  }
}

// Wherever an update fails: once a drain has said so, nothing writes the caller's memory, and what
// was written of each parameter is counted.
TEST(KeepTest, AfterAFailureADrainReturnsWhenLentParametersAreLeftAlone) {
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
    if (TrainLent(runtime, LentModel(), &params, &masters).ok()) continue;
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

TEST(KeepTest, AStepSaysWhereLentParametersLie) {
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

TEST(KeepTest, ALentParameterThatTheCallerChangedGoesIntoTheMaster) {
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
  ASSERT_TRUE(trainer.Wait(runtime->Step({.groups = still, .lent = places, .clip_norm = 0})).ok());
  const absl::StatusOr<std::vector<float>> master = trainer.Read(0, Field::kMaster);
  ASSERT_TRUE(master.ok()) << master.status();
  EXPECT_EQ(*master, expected);
  EXPECT_EQ(param, Rounded(expected));
}

TEST(KeepTest, AUnitIsLentWholeOrNotAtAll) {
  ModelSpec spec = LentModel();
  spec.tensors[2].keep = Keep::kAll;
  const absl::Status status = ModelLayout::Make(spec, kCellElements).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("block0"), std::string::npos) << status;
}

}  // namespace
}  // namespace sluice
