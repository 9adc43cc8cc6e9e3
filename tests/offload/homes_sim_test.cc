// Any mix of homes, by chunk and by unit, has the bits of everything in RAM: in virtual time,
// whatever is called, and in spite of faults.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/core/seeds.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using ::testing::AnyOf;
using testing::ConfigOf;
using testing::Drawn;
using testing::DrawnFrom;
using ::testing::HasSubstr;
using testing::Masters;
using testing::Outcome;
using testing::SameBits;
using testing::SimCaller;
using testing::Trainer;
using testing::TrainerOptions;

// Every unit and chunk goes wherever the seed says: of one in five units all states are in HBM, of
// others whose parameters are there some may be; and where states are, gradients are too.
void PlaceAnyhow(uint64_t seed, const ModelLayout& layout, Placement* p) {
  SimWorld dice(seed ^ 0x40735);
  const auto either = [&dice](uint64_t share) {
    return dice.OneIn(share) ? Tier::kPinned : Tier::kNvme;
  };
  Bytes largest, sum;
  const uint64_t grads = dice.Uniform(1, 4);
  const uint64_t states = dice.Uniform(1, 4);
  for (uint32_t u = 0; u < layout.units().size(); ++u) {
    const UnitLayout& unit = layout.units()[u];
    const bool all_in_hbm = dice.OneIn(5);
    p->param_home[u] = all_in_hbm || dice.OneIn(4) ? Tier::kHbm : either(2);
    const bool some_in_hbm = p->param_home[u] == Tier::kHbm && dice.OneIn(2);
    for (uint32_t c = unit.first_chunk; c < unit.first_chunk + unit.chunk_count; ++c) {
      const bool in_hbm = all_in_hbm || (some_in_hbm && dice.OneIn(2));
      p->state_home[c] = in_hbm ? Tier::kHbm : either(states);
      p->grad_home[c] = in_hbm ? Tier::kHbm : either(grads);
      if (layout.chunks()[c].keep == Keep::kParam) p->state_home[c] = Tier::kPinned;
    }
    if (p->param_home[u] == Tier::kHbm) continue;
    largest = std::max(largest, RoundUp(unit.param_bytes(), kSlotAlignment));
    sum += RoundUp(unit.param_bytes(), kSlotAlignment);
  }
  p->hbm_cache = dice.OneIn(2) ? largest : sum;
  p->state_buffers = static_cast<int>(dice.Uniform(2, 6));
  p->param_buffers = static_cast<int>(dice.Uniform(2, 6));
  p->grad_buffers = static_cast<int>(dice.Uniform(2, 6));
}

SimOptions Anyhow(uint64_t seed) {
  return {.seed = seed, .place = [seed](const ModelLayout& layout, Placement* placement) {
            PlaceAnyhow(seed, layout, placement);
          }};
}

Drawn WithRoom(uint64_t seed) {
  Drawn drawn = DrawnFrom(seed);
  drawn.config.budgets = {GiB(1), GiB(1), GiB(1)};
  return drawn;
}

TrainerOptions TrainingOf(uint64_t seed) {
  TrainerOptions options{.steps = 3,
                         .micro_steps = static_cast<int>(1 + seed % 3),
                         .clip_norm = seed % 4 == 0 ? 0.0 : 1.0};
  if (seed % 2 == 1) return options;
  options.order = [seed](int step, size_t units) {  // a unit twice, another not at all
    const auto skipped = static_cast<uint32_t>((seed + static_cast<uint64_t>(step)) % units);
    std::vector<uint32_t> order;
    for (uint32_t u = 0; u < units; ++u) {
      if (u != skipped) order.push_back(u);
    }
    order.push_back(order.front());
    return order;
  };
  return options;
}

TEST(HomesSimTest, EveryMixIsExact) {
  for (const uint64_t seed : Seeds(200)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    const Drawn drawn = WithRoom(seed);
    const TrainerOptions options = TrainingOf(seed);
    SimCaller caller;
    const Outcome outcome = testing::Simulate(drawn.spec, drawn.config, Anyhow(seed),
                                              Ahead(seed, options), CallerOf(seed, &caller));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(SameBits(outcome.masters, TrainReference(drawn.spec, options)));
    EXPECT_EQ(outcome.unsettled, "");
  }
}

TEST(HomesSimTest, WhateverGoesWrongEndsWellOrClearly) {
  int exact = 0;
  int failed = 0;
  for (const uint64_t seed : Seeds(300)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    const Drawn drawn = WithRoom(seed);
    const TrainerOptions options = TrainingOf(seed);
    SimOptions sim = Anyhow(seed);
    sim.faults = [seed](SimFaults* f) {
      SimWorld dice(seed);
      const uint64_t rare = 1 + dice.Uniform(1, 20) * dice.Uniform(1, 100);
      for (int i = 0; i < 2; ++i) {
        f->Draw(static_cast<SimSeam>(dice.Uniform(0, 3)), static_cast<SimFault>(dice.Uniform(1, 6)),
                rare);
      }
    };
    SimCaller caller;
    const Outcome outcome = testing::Simulate(drawn.spec, drawn.config, sim, Ahead(seed, options),
                                              CallerOf(seed, &caller));
    EXPECT_EQ(outcome.unsettled, "");
    if (outcome.status.ok()) {
      ++exact;
      EXPECT_TRUE(SameBits(outcome.masters, TrainReference(drawn.spec, options)));
    } else {
      ++failed;
      EXPECT_GT(outcome.faults, 0u) << outcome.status;
      EXPECT_FALSE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
      EXPECT_THAT(std::string(Message(outcome.status)),
                  AnyOf(HasSubstr("unit '"), HasSubstr("tensor '"), HasSubstr("has used a unit")));
    }
  }
  EXPECT_GT(exact, 30);
  EXPECT_GT(failed, 30);
}

// One runtime that is told what to do, and what it answered.
struct Told {
  explicit Told(const Drawn& drawn, const SimOptions& options)
      : spec(drawn.spec), sim(*MakeSimRuntime(drawn.spec, drawn.config, options)) {
    trainer.emplace(sim.runtime.get(), spec, TrainerOptions{});
    SLUICE_CHECK(trainer->Load().ok());
  }
  OffloadRuntime* operator->() { return sim.runtime.get(); }

  const ModelSpec spec;
  SimRuntime sim;
  std::optional<Trainer> trainer;
};

std::vector<float> AnyValues(SimWorld* dice, int64_t elements) {
  std::vector<float> values(static_cast<size_t>(elements));
  for (float& value : values)
    value = static_cast<float>(static_cast<int64_t>(dice->Uniform(0, 2000)) - 1000) * 1e-3f;
  if (dice->OneIn(12)) values.back() = std::numeric_limits<float>::infinity();
  return values;
}

// Calls in any order: gradients pushed again and again, read, replaced, forgotten; steps that are
// clipped, that overflow, and that come before gradients were said to be final.
TEST(HomesSimTest, WhateverIsCalledTheBitsAreThoseOfEverythingInRam) {
  int overflows = 0;
  for (const uint64_t seed : Seeds(120)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    const Drawn drawn = WithRoom(seed);
    Told ram(drawn, {.seed = seed});
    Told mix(drawn, Anyhow(seed));
    SimWorld dice(seed + 5);
    const auto both = [&](auto call) {
      const absl::Status a = call(ram);
      const absl::Status b = call(mix);
      EXPECT_EQ(a, b);
    };
    for (int i = 0; i < 60 && !HasFailure(); ++i) {
      const auto t = static_cast<uint32_t>(dice.Uniform(0, drawn.spec.tensors.size() - 1));
      const TensorIndex tensor(t);
      const TensorLayout& layout = ram->layout().tensor(tensor);
      const std::vector<float> values = AnyValues(&dice, layout.elements);
      switch (dice.Uniform(0, 8)) {
        case 0:
          both([&](Told& told) { return told->ClearGrad(tensor); });
          break;
        case 1:
          if (dice.OneIn(4)) both([](Told& told) { return told->ZeroGrad(), absl::OkStatus(); });
          break;
        case 2: {
          std::vector<float> read[2];
          int n = 0;
          both([&](Told& told) {
            const auto got = told.trainer->Read(t, Field::kGrad);
            if (got.ok()) read[n++] = *got;
            return got.status();
          });
          EXPECT_TRUE(SameBits({read[0]}, {read[1]}));
          break;
        }
        case 3:
          if (layout.keep == Keep::kParam) break;
          both([&](Told& told) {
            std::vector<float> given = values;
            return told.trainer->Wait(
                told->Access({.write = true,
                              .tensor = tensor,
                              .field = Field::kGrad,
                              .data = reinterpret_cast<std::byte*>(given.data()),
                              .type = FloatType::kF32,
                              .done = nullptr}));
          });
          break;
        case 4: {
          const bool boundary = dice.OneIn(2);
          both([&](Told& told) {
            return told->BeginIteration(boundary ? 1 : 0, boundary), absl::OkStatus();
          });
          break;
        }
        case 5: {
          const double clip = dice.OneIn(2) ? 0.5 : 0.0;
          both([&](Told& told) {
            return told.trainer->Wait(told->Step({.groups = testing::Groups(), .clip_norm = clip}));
          });
          const double norms[] = {ram->last_step().grad_norm, mix->last_step().grad_norm};
          EXPECT_EQ(0, std::memcmp(&norms[0], &norms[1], sizeof(double)));
          EXPECT_EQ(ram->last_step().applied, mix->last_step().applied);
          overflows += ram->last_step().applied ? 0 : 1;
          break;
        }
        default: {  // of a whole unit, in backward's order or the other, without waiting in between
          std::vector<TensorIndex> tensors = ram->layout().unit(layout.unit).tensors;
          if (dice.OneIn(2)) std::reverse(tensors.begin(), tensors.end());
          std::vector<std::vector<std::byte>> grads;
          for (const TensorIndex of : tensors) {
            const TensorLayout& o = ram->layout().tensor(of);
            const std::vector<float> v = AnyValues(&dice, o.elements);
            grads.emplace_back(v.size() * static_cast<size_t>(SizeOf(o.types.grad)));
            Convert(v.data(), FloatType::kF32, grads.back().data(), o.types.grad, v.size());
          }
          both([&](Told& told) {
            std::vector<Ticket> tickets;
            for (size_t g = 0; g < grads.size(); ++g)
              tickets.push_back(told->PushGrad(tensors[g], grads[g]));
            absl::Status first;
            for (const Ticket ticket : tickets) first.Update(told.trainer->Wait(ticket));
            return first;
          });
        }
      }
    }
    for (uint32_t t = 0; t < drawn.spec.tensors.size() && !HasFailure(); ++t) {
      const auto a = ram.trainer->Read(t, Field::kMaster);
      const auto b = mix.trainer->Read(t, Field::kMaster);
      ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
      EXPECT_TRUE(SameBits({*a}, {*b}));
    }
    mix->BeginIteration(0, false);  // what was read ahead is dropped
    EXPECT_TRUE(mix.trainer->Read(0, Field::kMaster).ok());
    EXPECT_EQ(testing::Settle(&mix.sim), "");
  }
  EXPECT_GT(overflows, 10);
}

// By arithmetic, on drives of 4:1: each byte is written once and read once a step, by rate.
TEST(HomesSimTest, SpilledGradientsAreWrittenAndReadOnceBySharesOfTheDrives) {
  constexpr int64_t kChunk = 2 * kCellElements;
  constexpr int64_t kUnits = 10;
  constexpr int64_t kChunksOfUnit = 20;
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u)});
    for (int part = 0; part < 2; ++part) {  // of two tensors, which share a chunk
      spec.tensors.push_back({.name = fmt::format("unit{}.{}", u, part),
                              .unit = UnitIndex(u),
                              .elements = kChunksOfUnit * kChunk / 2 + (part == 0 ? 4096 : -4096)});
    }
  }
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.device = DeviceKind::kHost;
  config.chunk_elements = kChunk;
  config.nvme_paths = {"fast", "slow"};
  config.nvme_rates = {{.read = 4, .write = 4}, {.read = 1, .write = 1}};
  config.budgets = {GiB(1), GiB(1), GiB(1)};
  config.budgets = testing::SmallestBudgets(spec, config);
  config.budgets.pinned += KiB(300);  // some of the gradients
  auto sim = MakeSimRuntime(spec, config, {.seed = 3});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* const runtime = sim->runtime.get();
  Trainer trainer(runtime, spec, TrainerOptions{});
  ASSERT_TRUE(trainer.Load().ok());
  const auto report = [&] { return nlohmann::json::parse(runtime->ReportJson()); };
  const nlohmann::json plan = report();
  const auto spilled = plan["nvme"]["gradients_bytes"].get<int64_t>();
  const auto here = plan["pinned"]["gradients_bytes"].get<int64_t>();
  EXPECT_GT(spilled, 0);
  EXPECT_GT(here, 0);
  EXPECT_EQ(spilled + here, 2 * kUnits * kChunksOfUnit * kChunk);
  EXPECT_EQ(plan["step_traffic"]["spilled_bytes"], spilled);
  for (int step = 1; step <= 3; ++step) {
    runtime->ResetCounters();
    runtime->BeginIteration(0, true);
    for (uint32_t t = 2 * kUnits; t-- > 0;) {
      const std::vector<std::byte> grad(static_cast<size_t>(2 * spec.tensors[t].elements));
      ASSERT_TRUE(trainer.Wait(runtime->PushGrad(TensorIndex(t), grad)).ok());
    }
    runtime->EndIteration();
    ASSERT_TRUE(trainer.Wait(runtime->Drain()).ok());
    const nlohmann::json pushed = report();
    EXPECT_EQ(pushed["counters"]["nvme_gradient_write_bytes"], spilled);
    EXPECT_EQ(pushed["counters"]["nvme_gradient_read_bytes"], 0);
    EXPECT_EQ(pushed["counters"]["nvme_write_bytes"], spilled);
    const auto fast = pushed["drives"][0]["write_bytes"].get<double>();
    EXPECT_NEAR(fast, 0.8 * static_cast<double>(spilled), 2.0 * 2 * kChunk);
    ASSERT_TRUE(trainer.Wait(runtime->Step({.groups = testing::Groups(), .clip_norm = 1.0})).ok());
    ASSERT_TRUE(trainer.Wait(runtime->Drain()).ok());
    EXPECT_EQ(report()["counters"]["nvme_gradient_write_bytes"], spilled);
    EXPECT_EQ(report()["counters"]["nvme_gradient_read_bytes"], spilled);
    EXPECT_TRUE(runtime->last_step().applied);
  }
  // A step that overflows drops them unread.
  runtime->ResetCounters();
  runtime->BeginIteration(0, true);
  for (uint32_t t = 0; t < 2 * kUnits; ++t) {
    const std::vector<std::byte> grad(static_cast<size_t>(2 * spec.tensors[t].elements),
                                      std::byte{0xFF});  // NaN
    ASSERT_TRUE(trainer.Wait(runtime->PushGrad(TensorIndex(t), grad)).ok());
  }
  ASSERT_TRUE(trainer.Wait(runtime->Step({.groups = testing::Groups(), .clip_norm = 1.0})).ok());
  EXPECT_FALSE(runtime->last_step().applied);
  EXPECT_EQ(report()["counters"]["nvme_gradient_write_bytes"], spilled);
  EXPECT_EQ(report()["counters"]["nvme_gradient_read_bytes"], 0);
}

}  // namespace
}  // namespace sluice
