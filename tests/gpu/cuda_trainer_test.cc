// The whole runtime on a GPU: a caller that computes on a stream of its own, with HBM for some
// units and for all, with and without a drive, trains the bits of the reference.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "offload/run/report.h"
#include "tests/gpu/cuda_caller.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::CudaCaller;
using ::testing::HasSubstr;
using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

constexpr size_t kCallerBytes = size_t{64} << 20;

struct Variant {
  const char* name;
  Bytes hbm;
  Bytes pinned;
  FloatType type;
  Tier lowest_state_tier = Tier::kNvme;
  uint64_t mixed_seed = 0;  // if not 0: units of types drawn from it
};

class CudaTrainerTest : public ::testing::TestWithParam<Variant> {};

TEST_P(CudaTrainerTest, TrainsTheBitsOfTheReference) {
  const Variant& setup = GetParam();
  TempDir drive;
  RuntimeConfig config;
  config.device = DeviceKind::kCuda;
  config.types.param = setup.type;
  config.types.grad = setup.type;
  config.placement.resident_elements_max = 100;
  config.placement.lowest_state_tier = setup.lowest_state_tier;
  config.chunk_elements = kCellElements;
  config.budgets = {setup.hbm, setup.pinned, GiB(1)};
  config.nvme_paths = {drive.path()};
  TrainerOptions options{.steps = 4, .micro_steps = 2};
  options.param_type = setup.type;
  options.grad_type = setup.type;

  const ModelSpec spec = setup.mixed_seed == 0 ? OddModel() : testing::MixedModel(setup.mixed_seed);
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(spec, config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  EXPECT_THAT((*runtime)->ReportJson(), HasSubstr("CUDA: "));
  EXPECT_THAT((*runtime)->ReportJson(), HasSubstr("registered with the device"));
  {
    CudaCaller caller(kCallerBytes);
    Trainer trainer(runtime->get(), spec, options, &caller);
    const absl::Status status = trainer.Run();
    ASSERT_TRUE(status.ok()) << status;
    const auto expected = testing::TrainReference(spec, options);
    for (uint32_t t = 0; t < expected.size(); ++t) {
      const absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
      ASSERT_TRUE(master.ok()) << master.status();
      ASSERT_EQ(expected[t], *master) << "tensor " << spec.tensors[t].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Budgets, CudaTrainerTest,
    ::testing::Values(
        Variant{"EverythingInHbm", MiB(8), MiB(64), FloatType::kBf16},
        Variant{"ParametersInHbm", KiB(312), MiB(64), FloatType::kBf16},
        Variant{"ParametersAndSomeStatesInHbm", KiB(900), MiB(64), FloatType::kBf16},
        Variant{"ParametersAndSomeStatesInHbmAndADrive", KiB(900), KiB(500), FloatType::kBf16},
        Variant{"HbmForTwoUnits", KiB(120), MiB(64), FloatType::kBf16},
        Variant{"HbmForTwoUnitsAndADrive", KiB(120), KiB(900), FloatType::kBf16},
        Variant{"ParametersInHbmAndADrive", KiB(312), KiB(900), FloatType::kF16},
        Variant{"Fp32HbmForTwoUnits", KiB(240), MiB(64), FloatType::kF32},
        Variant{"StatesInHbm", MiB(8), MiB(64), FloatType::kBf16, Tier::kHbm},
        Variant{"Fp16StatesInHbm", MiB(8), MiB(64), FloatType::kF16, Tier::kHbm},
        Variant{"Fp32StatesInHbm", MiB(8), MiB(64), FloatType::kF32, Tier::kHbm},
        Variant{"MixedHbmForOneUnit", KiB(120), MiB(64), FloatType::kBf16, Tier::kNvme, 1},
        Variant{"MixedAndADrive", KiB(120), KiB(500), FloatType::kBf16, Tier::kNvme, 2},
        Variant{"MixedStatesInHbm", MiB(8), MiB(64), FloatType::kBf16, Tier::kHbm, 3}),
    [](const auto& info) { return info.param.name; });

// What is pushed again is added on the GPU, wherever it comes from.
TEST(CudaRuntimeTest, GradientsMayComeFromTheHostWhereStatesAreInHbm) {
  RuntimeConfig config;
  config.device = DeviceKind::kCuda;
  config.placement.lowest_state_tier = Tier::kHbm;
  const absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(OddModel(), config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), {});
  ASSERT_TRUE(trainer.Load().ok());
  std::vector<float> values = testing::InitialValues(7, 5003);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(
        trainer.Wait((*runtime)->PushGrad(TensorIndex(0), std::as_bytes(std::span(values)))).ok());
  }
  for (float& value : values) value *= 2;
  EXPECT_EQ(trainer.Read(0, Field::kGrad).value(), values);
  EXPECT_EQ(trainer.Read(3, Field::kMaster).value(), testing::InitialValues(3, 4096));
}

// Set, added to on the GPU, summed there, replaced after that, and cleared.
TEST(CudaRuntimeTest, GradientsInHbmMayBeSetAndCleared) {
  RuntimeConfig config;
  config.device = DeviceKind::kCuda;
  config.placement.lowest_state_tier = Tier::kHbm;
  const absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(OddModel(), config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), {});
  ASSERT_TRUE(trainer.Load().ok());
  const TensorIndex tensor(4);  // behind others in its chunks
  const TensorIndex neighbour(3);
  std::vector<float> values(12289, 2.0f);
  std::vector<float> ones(4096, 1.0f);
  const auto set = [&](TensorIndex t, std::vector<float>* data) {
    return trainer.Wait((*runtime)->Access({.write = true,
                                            .tensor = t,
                                            .field = Field::kGrad,
                                            .data = reinterpret_cast<std::byte*>(data->data()),
                                            .type = FloatType::kF32,
                                            .done = nullptr}));
  };
  (*runtime)->BeginIteration(1, true);
  ASSERT_TRUE(set(neighbour, &ones).ok());
  ASSERT_TRUE(set(tensor, &values).ok());
  ASSERT_TRUE(trainer.Wait((*runtime)->PushGrad(tensor, std::as_bytes(std::span(values)))).ok());
  EXPECT_EQ(trainer.Read(4, Field::kGrad).value(), std::vector<float>(12289, 4.0f));
  ASSERT_TRUE(set(tensor, &values).ok());
  EXPECT_EQ(trainer.Read(4, Field::kGrad).value(), values);
  EXPECT_EQ(trainer.Read(3, Field::kGrad).value(), ones);
  (*runtime)->EndIteration();
  ASSERT_TRUE((*runtime)->ClearGrad(neighbour).ok());
  ASSERT_TRUE(trainer.Wait((*runtime)->Step({.groups = testing::Groups(), .clip_norm = 0})).ok());
  EXPECT_NEAR((*runtime)->last_step().grad_norm, 2 * std::sqrt(12289.0), 1e-9);
  EXPECT_EQ((*runtime)->tensor_step(tensor), 1);
  EXPECT_EQ((*runtime)->tensor_step(neighbour), 0);
}

TEST(CudaRuntimeTest, ViewsOutliveTheRuntime) {
  RuntimeConfig config;
  config.device = DeviceKind::kCuda;
  config.budgets = {MiB(8), MiB(64), Bytes(0)};
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(OddModel(), config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), {});
  ASSERT_TRUE(trainer.Load().ok());
  ASSERT_TRUE(trainer.Wait((*runtime)->Acquire(UnitIndex(0))).ok());
  absl::StatusOr<DlManagedTensor*> view = (*runtime)->MakeView(UnitIndex(0));
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ((*view)->dl_tensor.device.device_type, kDlCuda);
  runtime->reset();
  std::vector<float> values(5003);
  testing::CheckCuda(cudaMemcpy(values.data(), (*view)->dl_tensor.data, values.size() * 4,
                                cudaMemcpyDeviceToHost));
  EXPECT_EQ(values, testing::InitialValues(0, 5003));
  (*view)->deleter(*view);
}

TEST(CudaRuntimeTest, TheBudgetDefaultsToTheGpusMemory) {
  RuntimeConfig config;
  config.device = DeviceKind::kAuto;
  const absl::StatusOr<Plan> plan = MakePlan(OddModel(), config);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->device.kind, DeviceKind::kCuda);
  EXPECT_THAT(plan->device.reason, HasSubstr("found "));
  EXPECT_EQ(plan->placement.hbm(), plan->placement.hbm_fixed);
}

}  // namespace
}  // namespace sluice
