// Whole trainings over drives that want other alignments of direct I/O than most: the same bits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "nlohmann/json.hpp"
#include "offload/run/factory.h"
#include "offload/sim/sim_factory.h"
#include "tests/nvme/fake_drive.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using ::sluice::testing::OddModel;
using ::sluice::testing::Trainer;
using ::sluice::testing::TrainerOptions;

class OddDrivesTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void TearDown() override { FakeDrive::Reset(); }

  static RuntimeConfig Config() {
    RuntimeConfig config;
    config.engine = IoEngineKind::kThreads;
    config.workers = 2;
    config.chunk_elements = 2 * kCellElements;
    config.types.param = FloatType::kBf16;
    config.types.grad = FloatType::kBf16;
    config.placement.resident_elements_max = 100;
    config.placement.state_buffers = 4;
    config.placement.param_buffers = 4;
    config.budgets = {KiB(300), KiB(1800), GiB(1)};
    return config;
  }

  static void TrainAndCheck(OffloadRuntime* runtime) {
    const TrainerOptions options{.steps = 3, .micro_steps = 2};
    Trainer trainer(runtime, OddModel(), options);
    const absl::Status trained = trainer.Run();
    ASSERT_TRUE(trained.ok()) << trained;
    const auto report = nlohmann::json::parse(runtime->ReportJson());
    EXPECT_GT(report["nvme"]["states_bytes"], 0);
    EXPECT_GT(report["counters"]["nvme_reads"], 0);
    EXPECT_LE(report["planned_bytes"]["pinned"], report["budgets_bytes"]["pinned"]);
    EXPECT_EQ(report["bytes_now"]["pinned"], report["planned_bytes"]["pinned"]);
    const auto expected = ::sluice::testing::TrainReference(OddModel(), options);
    for (uint32_t t = 0; t < expected.size(); ++t) {
      const auto master = trainer.Read(t, Field::kMaster);
      ASSERT_TRUE(master.ok()) << master.status();
      EXPECT_EQ(0, std::memcmp(expected[t].data(), master->data(), master->size() * sizeof(float)));
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, OddDrivesTest,
                         ::testing::Values(512, 4096, 8192, 16384, 32768, 65536, 131072));

TEST_P(OddDrivesTest, TrainToTheSameBits) {
  const TempDir dir;
  FakeDrive::Get().alignment = GetParam();
  FakeDrive::Get().said_alignment = 0;
  RuntimeConfig config = Config();
  config.nvme_paths = {dir.path()};
  const auto runtime = MakeRuntime(OddModel(), config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  TrainAndCheck(runtime->get());
  const auto report = nlohmann::json::parse((*runtime)->ReportJson());
  const auto path = report["paths"][0].get<std::string>();
  if (path.find("direct I/O, alignment") == std::string::npos) {
    EXPECT_THAT(path,
                ::testing::HasSubstr("plain I/O"));  // beyond 64 KiB, or none in this directory
  } else {
    EXPECT_THAT(path, ::testing::HasSubstr("alignment " + std::to_string(GetParam())));
  }
}

TEST_P(OddDrivesTest, TrainToTheSameBitsInSimulation) {
  RuntimeConfig config = Config();
  config.nvme_paths = {"simulated"};
  config.placement.io_alignment = std::max(Bytes(GetParam()), kSlotAlignment);
  const auto sim = MakeSimRuntime(OddModel(), config, {.seed = 3});
  ASSERT_TRUE(sim.ok()) << sim.status();
  TrainAndCheck(sim->runtime.get());
}

}  // namespace
}  // namespace sluice
