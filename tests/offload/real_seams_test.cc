// One training over real memory, files, engines and workers: the same bits wherever everything
// lives, and counters that prove which way it went.

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <tuple>

#include "nlohmann/json.hpp"
#include "offload/run/factory.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/smallest_budget.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

constexpr int64_t kChunkElements = 2 * kCellElements;  // a block is four chunks, or more

enum class Where {
  kAllInHbm,        // parameters in HBM, states in RAM
  kParamsStreamed,  // parameters move between RAM and a part of HBM
  kStatesOnNvme,    // so do they, and all states are on the drive
  kMostOnNvme,      // some of both fits in RAM
  kAllOnNvme,       // the smallest budgets that work
};
constexpr std::array kWhereNames = {"AllInHbm", "ParamsStreamed", "StatesOnNvme", "MostOnNvme",
                                    "AllOnNvme"};

// The smallest budgets that work: what the errors say.
Budgets SmallestBudgets(const ModelSpec& spec, const RuntimeConfig& like) {
  RuntimeConfig config = like;
  config.budgets = {Bytes(0), Bytes(0), GiB(1)};
  for (;;) {
    const absl::StatusOr<Plan> plan = MakePlan(spec, config);
    if (plan.ok()) return config.budgets;
    const std::optional<Bytes> smallest = SmallestNamed(plan.status());
    SLUICE_CHECK_MSG(smallest, Message(plan.status()));
    (TierNamed(plan.status()) == "hbm" ? config.budgets.hbm : config.budgets.pinned) = *smallest;
  }
}

RuntimeConfig ConfigFor(Where where, const std::string& path, const ModelSpec& spec = OddModel(),
                        RuntimeConfig config = {}) {
  if (config.chunk_elements == 0) config.chunk_elements = kChunkElements;
  config.types.param = FloatType::kBf16;
  config.types.grad = FloatType::kBf16;
  config.placement.resident_elements_max = 100;
  config.placement.state_buffers = 4;
  config.placement.param_buffers = 4;
  config.nvme_paths = {path};
  config.io.in_flight_max = 4;
  const Budgets smallest = SmallestBudgets(spec, config);
  switch (where) {
    case Where::kAllInHbm:
      config.budgets = {MiB(1), MiB(16), Bytes(0)};
      config.placement.lowest_param_tier = Tier::kHbm;
      break;
    case Where::kParamsStreamed:
      config.budgets = {smallest.hbm * 2, MiB(8), Bytes(0)};
      break;
    case Where::kStatesOnNvme:
      config.placement.lowest_param_tier = Tier::kPinned;
      config.budgets = {smallest.hbm * 2, SmallestBudgets(spec, config).pinned + KiB(40), GiB(1)};
      break;
    case Where::kMostOnNvme:
      config.budgets = {smallest.hbm * 2, smallest.pinned + KiB(300), GiB(1)};
      break;
    case Where::kAllOnNvme:
      config.budgets = smallest;
      break;
  }
  return config;
}

// That the run went where it should have gone: what the report says of places and movements.
void CheckPath(Where where, const nlohmann::json& report, int steps) {
  const auto& counters = report["counters"];
  const auto& homes = report["params_home_bytes"];
  const auto count = [&counters](const char* name) { return counters.value(name, int64_t{0}); };
  EXPECT_EQ(steps, count("steps"));
  EXPECT_EQ(steps * report["parameters_updated"].get<int64_t>(), count("elements_updated"));
  EXPECT_GT(report["chunks"], 2 * report["units"].get<int>());
  EXPECT_EQ(0, count("trace_departures"));
  for (const char* tier : {"hbm", "pinned", "nvme"})
    EXPECT_LE(report["planned_bytes"][tier], report["budgets_bytes"][tier]) << tier;

  const bool on_nvme = where >= Where::kStatesOnNvme;
  const bool streamed = where != Where::kAllInHbm;
  EXPECT_EQ(streamed, count("fetches") > 0);
  EXPECT_EQ(streamed, count("evictions") > 0);
  EXPECT_EQ(on_nvme, count("nvme_reads") > 0);
  EXPECT_EQ(on_nvme, count("nvme_write_bytes") > 0);
  EXPECT_EQ(on_nvme, report["nvme"]["states_bytes"] > 0);
  EXPECT_EQ(where >= Where::kMostOnNvme, report["nvme"]["params_bytes"] > 0);
  EXPECT_EQ(where >= Where::kMostOnNvme, homes["nvme"] > 0);
  if (where == Where::kAllOnNvme) {
    EXPECT_EQ(0, homes["pinned"]);
    EXPECT_EQ(0, report["pinned"]["states_bytes"]);
  } else {
    EXPECT_GT(report["pinned"]["states_bytes"].get<int64_t>() + homes["pinned"].get<int64_t>(), 0);
  }
}

void TrainAndCheck(Where where, const RuntimeConfig& config, const char* engine_words,
                   const ModelSpec& spec = OddModel()) {
  const TrainerOptions options{.steps = 4, .micro_steps = 2};
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(spec, config);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), spec, options);
  const absl::Status trained = trainer.Run();
  ASSERT_TRUE(trained.ok()) << trained;

  const nlohmann::json report = nlohmann::json::parse((*runtime)->ReportJson());
  CheckPath(where, report, options.steps);
  EXPECT_TRUE(report["engine"].get<std::string>().starts_with(engine_words)) << report["engine"];
  EXPECT_EQ(std::to_string(config.workers) + " worker threads", report["executor"]);

  const auto expected = testing::TrainReference(spec, options);
  for (uint32_t t = 0; t < expected.size(); ++t) {
    const absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
    ASSERT_TRUE(master.ok()) << master.status();
    EXPECT_EQ(0, std::memcmp(expected[t].data(), master->data(), master->size() * sizeof(float)))
        << "tensor " << spec.tensors[t].name;
  }
}

// With which its description begins.
const char* WordsOf(IoEngineKind engine) {
  return engine == IoEngineKind::kIoUring  ? "io_uring"
         : engine == IoEngineKind::kLibaio ? "libaio"
                                           : "threads";
}

class RealSeamsTest : public ::testing::TestWithParam<std::tuple<Where, IoEngineKind, int>> {
 public:
  static std::string NameOf(const ::testing::TestParamInfo<ParamType>& info) {
    const auto& [where, engine, workers] = info.param;
    return std::string(kWhereNames[static_cast<size_t>(where)]) + "_" + WordsOf(engine) + "_" +
           std::to_string(workers);
  }
};

TEST_P(RealSeamsTest, TrainsToTheSameBits) {
  const auto [where, engine, workers] = GetParam();
  SteadyClock clock;
  if (const auto probe = MakeIoEngine(engine, {}, {}, {}, &clock); !probe.ok())
    GTEST_SKIP() << probe.status();
  const TempDir dir;
  RuntimeConfig config = ConfigFor(where, dir.path());
  config.engine = engine;
  config.workers = workers;
  TrainAndCheck(where, config, WordsOf(engine));
  EXPECT_TRUE(dir.empty()) << "swap files have no names";
}

INSTANTIATE_TEST_SUITE_P(
    All, RealSeamsTest,
    ::testing::Combine(
        ::testing::Values(Where::kAllInHbm, Where::kParamsStreamed, Where::kStatesOnNvme,
                          Where::kMostOnNvme, Where::kAllOnNvme),
        ::testing::Values(IoEngineKind::kIoUring, IoEngineKind::kLibaio, IoEngineKind::kThreads),
        ::testing::Values(1, 4)),
    &RealSeamsTest::NameOf);

// Large chunks and small ones, tasks and copies of every size against them, over a link and without
// one.
TEST(RealSeamsTest, WhateverTheGrainsTheBitsAreTheSame) {
  ModelSpec spec = OddModel();
  const UnitIndex last(static_cast<uint32_t>(spec.units.size() - 1));
  spec.tensors.push_back({.name = "head.large", .unit = last, .elements = 120'003});
  const TrainerOptions options{.steps = 3};
  const auto expected = testing::TrainReference(spec, options);
  int turn = 0;
  for (const Where where : {Where::kAllInHbm, Where::kStatesOnNvme, Where::kAllOnNvme}) {
    for (const int64_t cells : {1, 5, 21}) {
      for (const int64_t task_pieces : {1, 2, 3}) {
        for (const double link : {0.0, 1e12}) {
          ++turn;
          SCOPED_TRACE(::testing::Message()
                       << kWhereNames[static_cast<size_t>(where)] << ", chunks of " << cells
                       << " cells, tasks of " << task_pieces << " pieces, link " << link);
          const TempDir dir;
          RuntimeConfig like;
          like.chunk_elements = cells * kCellElements;
          like.link_bytes_per_second = link;
          like.placement.copy_bytes = KiB(16) * (int64_t{1} << turn % 5);
          like.placement.task_elements = task_pieces * kPieceElements;
          RuntimeConfig config = ConfigFor(where, dir.path(), spec, like);
          if (turn % 2 == 0) config.budgets.pinned += MiB(2);
          config.engine = IoEngineKind::kThreads;
          config.workers = turn % 4 + 1;
          config.overlap = turn % 7 != 0;
          absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(spec, config);
          ASSERT_TRUE(runtime.ok()) << runtime.status();
          Trainer trainer(runtime->get(), spec, options);
          const absl::Status trained = trainer.Run();
          ASSERT_TRUE(trained.ok()) << trained;
          for (uint32_t t = 0; t < expected.size(); ++t) {
            const absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
            ASSERT_TRUE(master.ok()) << master.status();
            ASSERT_EQ(expected[t], *master) << "tensor " << spec.tensors[t].name;
          }
        }
      }
    }
  }
}

// Units of types of their own, some frozen, one of bytes.
TEST(RealSeamsTest, UnitsOfDifferentTypesTrainToTheSameBits) {
  for (const Where where : {Where::kAllInHbm, Where::kParamsStreamed, Where::kStatesOnNvme,
                            Where::kMostOnNvme, Where::kAllOnNvme}) {
    for (uint64_t seed = 1; seed <= 3 && !HasFailure(); ++seed) {
      SCOPED_TRACE(seed);
      SCOPED_TRACE(kWhereNames[static_cast<size_t>(where)]);
      const TempDir dir;
      const ModelSpec spec = testing::MixedModel(seed);
      RuntimeConfig config = ConfigFor(where, dir.path(), spec);
      config.engine = IoEngineKind::kThreads;
      config.workers = 2;
      TrainAndCheck(where, config, "threads", spec);
    }
  }
}

TEST(RealSeamsTest, WithoutOverlapTheBitsAreTheSame) {
  const TempDir dir;
  RuntimeConfig config = ConfigFor(Where::kAllOnNvme, dir.path());
  config.engine = IoEngineKind::kThreads;
  config.workers = 2;
  config.overlap = false;
  TrainAndCheck(Where::kAllOnNvme, config, "threads");
}

TEST(RealSeamsTest, OverTwoDrivesTheBitsAreTheSame) {
  const TempDir first;
  const TempDir second;
  RuntimeConfig config = ConfigFor(Where::kAllOnNvme, first.path());
  config.nvme_paths.push_back(second.path());
  config.engine = IoEngineKind::kThreads;
  config.workers = 2;
  TrainAndCheck(Where::kAllOnNvme, config, "threads");
}

// All masters written, then read, without waiting in between.
TEST(RealSeamsTest, ValuesSentAtOnceComeBack) {
  for (const Where where : {Where::kAllInHbm, Where::kMostOnNvme, Where::kAllOnNvme}) {
    const TempDir dir;
    RuntimeConfig config = ConfigFor(where, dir.path());
    config.workers = 4;
    const ModelSpec spec = OddModel();
    absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(spec, config);
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    Trainer trainer(runtime->get(), spec, {});
    std::vector<std::vector<float>> sent, got;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      sent.push_back(testing::InitialValues(t, spec.tensors[t].elements));
      got.emplace_back(sent[t].size());
    }
    std::vector<Ticket> tickets;
    for (std::vector<std::vector<float>>* values : {&sent, &got}) {
      for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
        tickets.push_back(
            (*runtime)->Access({.write = values == &sent,
                                .tensor = TensorIndex(t),
                                .data = reinterpret_cast<std::byte*>((*values)[t].data()),
                                .done = nullptr}));
      }
    }
    for (Ticket ticket : tickets) EXPECT_EQ(trainer.Wait(ticket), absl::OkStatus());
    EXPECT_EQ(sent, got);
  }
}

TEST(RealSeamsTest, ARuntimeMayEndInTheMiddleOfAStep) {
  const TempDir dir;
  RuntimeConfig config = ConfigFor(Where::kAllOnNvme, dir.path());
  config.workers = 2;
  for (int moment = 0; moment < 6; ++moment) {
    absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = MakeRuntime(OddModel(), config);
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    Trainer trainer(runtime->get(), OddModel(), {.steps = 1});
    ASSERT_TRUE(trainer.Load().ok());
    ASSERT_TRUE(moment == 0 || trainer.MicroStep(0, 0).ok());
    std::deque<std::vector<float>> values;
    for (uint32_t t = 0; moment > 3 && t < OddModel().tensors.size(); ++t) {
      values.emplace_back(static_cast<size_t>(OddModel().tensors[t].elements));
      (*runtime)->Access({.write = moment > 4,
                          .tensor = TensorIndex(t),
                          .data = reinterpret_cast<std::byte*>(values.back().data()),
                          .done = nullptr});
    }
    if (moment > 1 && moment < 4) (*runtime)->Step({.groups = testing::Groups(), .clip_norm = 1.0});
    if (moment == 3) (*runtime)->Acquire(UnitIndex(2));
    runtime->reset();
    values.clear();  // nobody reads or writes them any more
    EXPECT_TRUE(dir.empty());
  }
}

}  // namespace
}  // namespace sluice
