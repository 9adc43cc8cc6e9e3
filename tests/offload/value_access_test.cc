// Whole tensors in and out, in virtual time: several chunks at a time, as many as there are buffers
// for, in the order of the requests, whatever fails.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using ::testing::HasSubstr;
using testing::InitialValues;
using testing::OddModel;
using testing::Settle;
using testing::SmallestBudgets;
using testing::Trainer;
using testing::TrainerOptions;

constexpr Nanos kLatency = std::chrono::milliseconds(1);

// One tensor after another in one unit; a chunk is a cell.
ModelSpec OneUnit(size_t tensors, int64_t elements) {
  ModelSpec spec{.units = {{.name = "unit"}}, .tensors = {}};
  for (size_t t = 0; t < tensors; ++t) {
    spec.tensors.push_back(
        {.name = fmt::format("tensor{}", t), .unit = UnitIndex(0), .elements = elements});
  }
  return spec;
}

// Room for gradients, two buffers of each kind and `more`, if what is kept for good leaves it.
RuntimeConfig Tight(const ModelSpec& spec, Bytes more) {
  RuntimeConfig config;
  config.types.param = FloatType::kBf16;
  config.types.grad = FloatType::kBf16;
  config.placement.resident_elements_max = 100;
  config.chunk_elements = kCellElements;
  config.nvme_paths = {"simulated"};
  config.io.in_flight_max = 64;
  config.budgets = SmallestBudgets(spec, config);
  for (const ModelSpec::Tensor& tensor : spec.tensors)
    config.budgets.pinned += Bytes(2 * tensor.elements);
  config.budgets.pinned += more;
  return config;
}

class Values {
 public:
  Values(const ModelSpec& spec, const RuntimeConfig& config, const SimOptions& options)
      : spec_(spec), placement_(MakePlan(spec, config)->placement) {
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, options);
    SLUICE_CHECK(sim.ok());
    sim_ = *std::move(sim);
    trainer_ = std::make_unique<Trainer>(sim_.runtime.get(), spec_, TrainerOptions());
  }

  Ticket Start(bool write, uint32_t tensor, std::vector<float>* values,
               Field field = Field::kMaster) {
    values->resize(static_cast<size_t>(spec_.tensors[tensor].elements));
    return sim_.runtime->Access({.write = write,
                                 .tensor = TensorIndex(tensor),
                                 .field = field,
                                 .data = reinterpret_cast<std::byte*>(values->data()),
                                 .done = nullptr});
  }

  // The masters of all tensors, sent at once. Returns how each ended.
  std::vector<absl::Status> All(bool write, std::vector<std::vector<float>>* values) {
    values->resize(spec_.tensors.size());
    std::vector<Ticket> tickets;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t)
      tickets.push_back(Start(write, t, &(*values)[t]));
    std::vector<absl::Status> statuses;
    for (Ticket ticket : tickets) statuses.push_back(trainer_->Wait(ticket));
    return statuses;
  }

  std::vector<std::vector<float>> Initial() const {
    std::vector<std::vector<float>> values;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t)
      values.push_back(InitialValues(t, spec_.tensors[t].elements));
    return values;
  }

  absl::Status Load() {
    std::vector<std::vector<float>> values = Initial();
    for (const absl::Status& status : All(true, &values)) SLUICE_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  // Virtual time of reading all masters at once; they must be the initial ones.
  Nanos TimeToRead() {
    const TimePoint begin = sim_.world->Now();
    std::vector<std::vector<float>> values;
    for (const absl::Status& status : All(false, &values)) EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(values, Initial());
    return sim_.world->Now() - begin;
  }

  int64_t on_nvme() const {
    return std::count(placement_.state_home.begin(), placement_.state_home.end(), Tier::kNvme);
  }
  const Placement& placement() const { return placement_; }
  SimFaults* faults() { return sim_.world->faults(); }
  SimRuntime* sim() { return &sim_; }
  Trainer* trainer() { return trainer_.get(); }

 private:
  const ModelSpec spec_;
  const Placement placement_;
  SimRuntime sim_;
  std::unique_ptr<Trainer> trainer_;
};

// As many rounds of the latency as the buffers force, and little beside.
void ExpectRounds(Nanos time, int64_t chunks, int buffers) {
  const int64_t rounds = (chunks + buffers - 1) / buffers;
  EXPECT_GE(time, kLatency * rounds);
  EXPECT_LT(time, kLatency * rounds + kLatency / 2) << chunks << " chunks, " << buffers;
}

TEST(ValueAccessTest, ATensorIsReadWithAllBuffersAtOnce) {
  const ModelSpec spec = OneUnit(1, 96 * kCellElements);
  Values values(spec, Tight(spec, MiB(1)), {.io_latency = kLatency});
  ASSERT_TRUE(values.Load().ok());
  ASSERT_GE(values.placement().state_buffers, 8);
  ASSERT_GE(values.on_nvme(), 64);
  ExpectRounds(values.TimeToRead(), values.on_nvme(), values.placement().state_buffers);
}

TEST(ValueAccessTest, ManySmallTensorsAreReadWithAllBuffersAtOnce) {
  const ModelSpec spec = OneUnit(96, kCellElements);
  Values values(spec, Tight(spec, MiB(1)), {.io_latency = kLatency});
  ASSERT_TRUE(values.Load().ok());
  ASSERT_GE(values.placement().state_buffers, 8);
  ASSERT_GE(values.on_nvme(), 64);
  ExpectRounds(values.TimeToRead(), values.on_nvme(), values.placement().state_buffers);
}

TEST(ValueAccessTest, LoadingWritesWithAllBuffersAtOnce) {
  const ModelSpec spec = OneUnit(96, kCellElements);
  Values values(spec, Tight(spec, MiB(1)), {.io_latency = kLatency});
  const TimePoint begin = values.sim()->world->Now();
  ASSERT_TRUE(values.Load().ok());
  // What is written the first time is not read before.
  ExpectRounds(values.sim()->world->Now() - begin, values.on_nvme(),
               values.placement().state_buffers);
}

// A chunk of many tensors is read once for each, one after another, and holds up no other.
TEST(ValueAccessTest, TensorsOfOneChunkHoldUpNoOthers) {
  constexpr uint32_t kPerChunk = 15;
  ModelSpec spec = OneUnit(1, 64 * kCellElements);  // which fills what pinned memory has room for
  for (uint32_t unit = 1; unit <= 4; ++unit) {
    spec.units.push_back({.name = fmt::format("unit{}", unit)});
    for (uint32_t t = 0; t < kPerChunk; ++t) {
      spec.tensors.push_back(
          {.name = fmt::format("tensor{}.{}", unit, t), .unit = UnitIndex(unit), .elements = 10});
    }
  }
  Values values(spec, Tight(spec, KiB(512)), {.io_latency = kLatency});
  ASSERT_TRUE(values.Load().ok());
  ASSERT_EQ(values.placement().state_home.back(), Tier::kNvme);
  EXPECT_LT(values.TimeToRead(), kLatency * 2 * kPerChunk);
}

TEST(ValueAccessTest, WithoutOverlapOneChunkIsUnderWay) {
  const ModelSpec spec = OneUnit(1, 96 * kCellElements);
  RuntimeConfig config = Tight(spec, MiB(1));
  config.overlap = false;
  Values values(spec, config, {.io_latency = kLatency});
  ASSERT_TRUE(values.Load().ok());
  ExpectRounds(values.TimeToRead(), values.on_nvme(), 1);
}

TEST(ValueAccessTest, TheSmallestPoolsGiveTwoAtATime) {
  const ModelSpec spec = OneUnit(3, 16 * kCellElements);
  Values values(spec, Tight(spec, Bytes(0)), {.io_latency = kLatency});
  ASSERT_EQ(values.placement().state_buffers, kBuffersMin);
  ASSERT_EQ(values.placement().param_buffers, kBuffersMin);
  ASSERT_EQ(values.on_nvme(), 48);
  ASSERT_TRUE(values.Load().ok());
  ExpectRounds(values.TimeToRead(), 48, kBuffersMin);
  EXPECT_EQ(Settle(values.sim()), "");
}

// Reads and writes of any field, sent without waiting, while chunks are shared: each sees what came
// before it, and a tensor has no values before its first write.
TEST(ValueAccessTest, RequestsSentAtOnceHappenInTheirOrder) {
  const ModelSpec spec = OddModel();
  constexpr Field kFields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};
  for (const uint64_t seed : Seeds(40)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    if (seed % 2 == 0) config.budgets = SmallestBudgets(spec, config);
    Values values(spec, config, {.seed = seed});
    SimWorld dice(seed);
    struct Sent {
      Ticket ticket;
      bool allowed;
      std::vector<float> data, expected;
    };
    std::deque<Sent> sent;
    std::set<uint32_t> loaded;
    std::map<std::pair<uint32_t, Field>, std::vector<float>> now;
    for (uint32_t i = 0; i < 120; ++i) {
      const auto tensor = static_cast<uint32_t>(dice.Uniform(0, spec.tensors.size() - 1));
      const Field field = kFields[dice.Uniform(0, 2)];
      const auto elements = static_cast<size_t>(spec.tensors[tensor].elements);
      std::vector<float>& current = now[{tensor, field}];
      current.resize(elements, 0.0f);
      const bool write = dice.OneIn(3);
      Sent& one = sent.emplace_back();
      if (write) one.data = current = InitialValues(1000 + i, spec.tensors[tensor].elements);
      one.expected = current;
      if (write && field == Field::kMaster) loaded.insert(tensor);
      one.allowed = write || loaded.contains(tensor);
      one.ticket = values.Start(write, tensor, &one.data, field);
    }
    for (Sent& one : sent) {
      const absl::Status status = values.trainer()->Wait(one.ticket);
      EXPECT_EQ(status.code(),
                one.allowed ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition);
      EXPECT_TRUE(!status.ok() || one.data == one.expected);
    }
    EXPECT_EQ(Settle(values.sim()), "");
  }
}

// Between steps whose updates still run.
TEST(ValueAccessTest, ReadsWaitForUpdatesInFlight) {
  const ModelSpec spec = OddModel();
  for (const uint64_t seed : Seeds(20)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    if (seed % 2 == 0) config.budgets = SmallestBudgets(spec, config);
    Values values(spec, config, {.seed = seed});
    ASSERT_TRUE(values.Load().ok());
    for (TrainerOptions options{.steps = 1}; options.steps <= 3; ++options.steps) {
      ASSERT_TRUE(values.trainer()->MicroStep(options.steps - 1, 0).ok());
      const Ticket step = values.sim()->runtime->Step(
          {.groups = testing::Groups(), .clip_norm = options.clip_norm});
      std::vector<std::vector<float>> got;
      for (const absl::Status& status : values.All(false, &got)) EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(values.trainer()->Wait(step).ok());
      EXPECT_TRUE(testing::SameBits(got, TrainReference(spec, options)));
    }
    EXPECT_EQ(Settle(values.sim()), "");
  }
}

// The n-th read fails, for every n: some tensor says so, the others have their values, and all of
// it can be read again.
TEST(ValueAccessTest, AReadThatFailsAmongOthersFailsItsTensorAlone) {
  const ModelSpec spec = OneUnit(6, 5 * kCellElements + kCellElements / 2);
  for (const SimFault fault : {SimFault::kError, SimFault::kCorrupt}) {
    int64_t reads = 1;
    for (int64_t n = 1; n <= reads && !HasFailure(); ++n) {
      SCOPED_TRACE(n);
      Values values(spec, Tight(spec, KiB(512)), {.seed = static_cast<uint64_t>(n)});
      reads = values.on_nvme();
      ASSERT_TRUE(values.Load().ok());
      values.faults()->Script(SimSeam::kRead, fault, static_cast<uint64_t>(n),
                              SimFaults::Repeat::kOnce);
      std::vector<std::vector<float>> got;
      const std::vector<absl::Status> statuses = values.All(false, &got);
      EXPECT_EQ(Settle(values.sim()), "");
      int failed = 0;
      for (size_t t = 0; t < statuses.size(); ++t) {
        if (statuses[t].ok()) {
          EXPECT_EQ(got[t], values.Initial()[t]);
          continue;
        }
        ++failed;
        EXPECT_THAT(std::string(Message(statuses[t])),
                    HasSubstr(fmt::format("reading tensor '{}'", spec.tensors[t].name)));
      }
      EXPECT_EQ(failed, 1);
      EXPECT_TRUE(values.sim()->runtime->failure().ok());
      values.TimeToRead();
    }
    EXPECT_GE(reads, 20);
  }
}

// The n-th write fails: what was asked for before is written, what comes after it is not, nor read,
// but for what was under way already, and the runtime has failed.
TEST(ValueAccessTest, AWriteThatFailsAmongOthersEndsAllThatFollow) {
  const ModelSpec spec = OneUnit(6, 5 * kCellElements + kCellElements / 2);
  for (uint64_t n = 1; n <= 20 && !HasFailure(); ++n) {
    SCOPED_TRACE(n);
    Values values(spec, Tight(spec, KiB(512)), {.seed = n, .io_latency = kLatency});
    ASSERT_TRUE(values.Load().ok());
    values.faults()->Script(SimSeam::kWrite, SimFault::kError, n, SimFaults::Repeat::kOnce);
    std::vector<std::vector<float>> initial = values.Initial();
    std::vector<std::vector<float>> got(initial.size());
    std::vector<Ticket> tickets;
    for (uint32_t t = 0; t < initial.size(); ++t) {
      tickets.push_back(values.Start(true, t, &initial[t]));
      tickets.push_back(values.Start(false, t, &got[t]));
    }
    std::vector<absl::Status> statuses;
    for (Ticket ticket : tickets) statuses.push_back(values.trainer()->Wait(ticket));
    EXPECT_EQ(Settle(values.sim()), "");
    const absl::Status failure = values.sim()->runtime->failure();
    EXPECT_FALSE(failure.ok());
    size_t i = 0;
    while (i < statuses.size() && statuses[i].ok()) ++i;
    ASSERT_LT(i, statuses.size());
    EXPECT_EQ(i % 2, 0u);
    EXPECT_THAT(std::string(Message(statuses[i])),
                HasSubstr(fmt::format("writing tensor '{}'", spec.tensors[i / 2].name)));
    for (++i; i < statuses.size(); ++i) EXPECT_EQ(statuses[i], failure);
    EXPECT_EQ(values.trainer()->Read(0, Field::kMaster).status(), failure);
  }
}

TEST(ValueAccessTest, AWriteThatFailsStopsTheTensorBehindIt) {
  ModelSpec spec = OneUnit(1, kCellElements);
  spec.tensors.push_back({.name = "large", .unit = UnitIndex(0), .elements = 96 * kCellElements});
  RuntimeConfig config = Tight(spec, Bytes(0));
  config.workers = 1;  // so that the first tensor is the first to be written
  Values values(spec, config, {.io_latency = kLatency});
  ASSERT_EQ(values.on_nvme(), 97);  // all
  values.faults()->Script(SimSeam::kWrite, SimFault::kError, 1, SimFaults::Repeat::kOnce);
  std::vector<std::vector<float>> initial = values.Initial();
  for (const absl::Status& status : values.All(true, &initial)) EXPECT_FALSE(status.ok());
  EXPECT_EQ(Settle(values.sim()), "");
  EXPECT_FALSE(values.sim()->runtime->failure().ok());
  EXPECT_LE(values.faults()->calls(SimSeam::kWrite),
            static_cast<uint64_t>(values.placement().state_buffers));
}

}  // namespace
}  // namespace sluice
