// Lent tensors: their parameters stay in the caller's memory, and all else is kept, or all but the
// master, which is the parameter then. They come out as those of any model.

#include "tests/offload/lent.h"

#include <gmock/gmock.h>

#include <deque>

#include "offload/plan/traffic.h"

namespace sluice {
namespace {

using testing::AdamWGroups;
using testing::ConfigOf;
using testing::Expected;
using testing::Groups;
using ::testing::HasSubstr;
using testing::InitialValues;
using testing::kGradType;
using testing::Lending;
using testing::LentConfig;
using testing::LentTest;
using testing::MakeGradient;
using testing::Masters;
using testing::Params;
using testing::PushAll;
using testing::Trainer;
using testing::TrainLent;
using testing::ValuesOf;

INSTANTIATE_TEST_SUITE_P(All, LentTest, ::testing::ValuesIn(testing::kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(LentTest, LentParametersAreExactForEverySeedAndTakeNoRoom) {
  const ModelSpec spec = Model();
  const Expected expected(spec, kind().options());
  for (const uint64_t seed : Seeds(40)) {
    SCOPED_TRACE(seed);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, LentConfig(seed, spec), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    Params params(kind(), spec);
    ASSERT_EQ(TrainLent(sim->runtime.get(), kind(), &params, static_cast<Lending>(seed % 3),
                        1 + seed % 7),
              absl::OkStatus());
    Trainer trainer(sim->runtime.get(), spec, kind().options());
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      SCOPED_TRACE(t);
      ASSERT_EQ(params.values[t], kind().Rounded(expected.masters[t]));
      ASSERT_EQ(trainer.Read(t, Field::kExpAvg).value(), expected.exp_avg[t]);
      ASSERT_EQ(trainer.Read(t, Field::kExpAvgSq).value(), expected.exp_avg_sq[t]);
      if (spec.tensors[t].keep == Keep::kMoments) continue;
      ASSERT_EQ(trainer.Read(t, Field::kMaster).value(), expected.masters[t]);
    }
  }
}

// A tensor's states take 12 bytes an element, or 8, wherever they are; and a step moves as many.
TEST_P(LentTest, PlacementsAndTrafficCountWhatIsKept) {
  const ModelSpec spec = Model();
  for (const uint64_t seed : Seeds(12)) {
    SCOPED_TRACE(seed);
    const RuntimeConfig config = LentConfig(seed, spec);
    const absl::StatusOr<Plan> plan = MakePlan(spec, config);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const ModelLayout& layout = plan->layout;
    const Placement& p = plan->placement;
    Bytes states, on_drives;
    size_t changes = 0;  // of what is kept, from a chunk to the next of its unit
    for (size_t c = 0; c < layout.chunks().size(); ++c) {
      const ChunkLayout& chunk = layout.chunks()[c];
      const Bytes bytes(chunk.capacity * (chunk.keep == Keep::kMoments ? 8 : 12));
      EXPECT_EQ(chunk.state_bytes(), bytes);
      const Bytes moved = RoundUp(bytes, p.io_alignment);
      states += p.state_home[c] == Tier::kNvme ? moved : RoundUp(bytes, kSlotAlignment);
      if (p.state_home[c] == Tier::kNvme) on_drives += moved;
      for (const ChunkRun& run : layout.runs(chunk))
        EXPECT_EQ(layout.tensor(run.tensor).keep, chunk.keep);
      if (c > 0 && layout.chunks()[c - 1].unit == chunk.unit)
        changes += layout.chunks()[c - 1].keep != chunk.keep ? 1 : 0;
    }
    EXPECT_LE(changes, spec.units.size()) << "tensors of which the same is kept lie together";
    EXPECT_EQ(p.states_hbm, Bytes(0));
    EXPECT_EQ(p.states_pinned + p.states_nvme, states);
    EXPECT_EQ(p.states_nvme, on_drives);
    EXPECT_EQ(p.params_pinned + p.params_nvme + p.hbm_fixed, Bytes(0));
    const StepTraffic traffic = TrafficOf(layout, p);
    EXPECT_EQ(traffic.nvme_read, on_drives + p.grads_nvme);
    EXPECT_EQ(traffic.nvme_written, on_drives + p.grads_nvme);
    EXPECT_EQ(traffic.elements_updated, layout.parameter_count());
    if (seed % 4 == 3) {
      EXPECT_GT(on_drives, Bytes(0));
    }
  }
}

// Nothing updates in a GPU's memory what is the caller's: states stay in RAM, also where they were
// to be there.
TEST_P(LentTest, BesideAGpuStatesStayInRam) {
  RuntimeConfig config = ConfigOf(1);
  config.placement.lowest_state_tier = Tier::kHbm;
  const auto input =
      MakePlanInput(Model(), config, {.kind = DeviceKind::kCuda, .memory_free = GiB(8)});
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->options.lowest_state_tier, Tier::kPinned);
}

TEST_P(LentTest, AStepSaysWhereLentParametersLie) {
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(Model(), ConfigOf(1), {.seed = 1});
  ASSERT_TRUE(sim.ok()) << sim.status();
  OffloadRuntime* runtime = sim->runtime.get();
  Trainer trainer(runtime, Model(), kind().options());
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
  Params params(kind(), Model());
  std::vector<ParamPlace> places(Model().tensors.size());
  for (const FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    if (kind().KeepOf(0) != Keep::kMoments) break;
    places[0] = {params.values[0].data(), type};
    const absl::Status refused = step(places);
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("'embedding.0', of which only moments"));
  }
  EXPECT_EQ(params.values[0], kind().Rounded(InitialValues(0, 5003)));
  places[0] = params.places[0];
  EXPECT_TRUE(step(places).ok());  // what was refused has changed nothing
  EXPECT_EQ(runtime->tensor_step(TensorIndex(0)), 1);
  EXPECT_TRUE(trainer.Wait(runtime->Drain()).ok());  // it is written until then
}

// Between steps the caller changes some values, and gives others' memory: each time the update goes
// on from what the parameter is, and where nothing was changed from what the master is.
TEST_P(LentTest, WhatTheCallerChangedIsTheMaster) {
  const ModelSpec spec = Model();
  for (const uint64_t seed : Seeds(12)) {
    SCOPED_TRACE(seed);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, LentConfig(seed, spec), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* runtime = sim->runtime.get();
    Trainer trainer(runtime, spec, kind().options());
    ASSERT_EQ(trainer.Load(), absl::OkStatus());
    std::deque<Params> memory;
    Params* params = &memory.emplace_back(kind(), spec);
    Masters master, m(spec.tensors.size()), v(spec.tensors.size());
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      master.push_back(InitialValues(t, spec.tensors[t].elements));
      m[t].resize(master[t].size());
      v[t].resize(master[t].size());
    }
    for (int step = 0; step < 3; ++step) {
      if (step == 2) {  // elsewhere
        memory.emplace_back(kind(), spec).values = params->values;
        params = &memory.back();
        for (uint32_t t = 0; t < spec.tensors.size(); ++t)
          params->places[t].data = params->values[t].data();
      }
      const auto element = static_cast<size_t>(SizeOf(kind().type));
      std::vector<std::vector<std::byte>> grads;
      for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
        for (size_t i = seed % 5 + static_cast<size_t>(step); i < master[t].size(); i += 997) {
          const float value = 0.25f * static_cast<float>(i % 7) + 0.125f;
          std::byte* const at = params->values[t].data() + i * element;
          const bool same = ValuesOf({at, at + element}, kind().type)[0] == value;
          Convert(&value, FloatType::kF32, at, kind().type, 1);
          if (!same) master[t][i] = value;
        }
        grads.push_back(MakeGradient(step, t, params->values[t].data(), kind().type, kGradType,
                                     spec.tensors[t].elements));
        const ScopedFlushDenormals flush;
        AdamWUpdate(MakeCoefficients(AdamWGroups()[spec.tensors[t].group], step + 1, 1.0f),
                    {.master = master[t],
                     .exp_avg = m[t],
                     .exp_avg_sq = v[t],
                     .grad = grads[t].data(),
                     .grad_type = kGradType});
      }
      ASSERT_EQ(PushAll(runtime, &trainer, static_cast<Lending>(seed % 3), 4, grads),
                absl::OkStatus());
      ASSERT_EQ(
          trainer.Wait(runtime->Step({.groups = Groups(), .lent = params->places, .clip_norm = 0})),
          absl::OkStatus());
      ASSERT_EQ(trainer.Wait(runtime->Drain()), absl::OkStatus());
      for (uint32_t t = 0; t < spec.tensors.size(); ++t)
        ASSERT_EQ(params->values[t], kind().Rounded(master[t])) << step << ", tensor " << t;
    }
  }
}

// Each field of each tensor: what is kept is read as it was written, beside what stays; what is the
// caller's is refused by name.
TEST_P(LentTest, FieldsThatAreKeptAreReadAndWritten) {
  const ModelSpec spec = Model();
  for (const uint64_t seed : Seeds(8)) {
    SCOPED_TRACE(seed);
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, LentConfig(seed, spec), {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    OffloadRuntime* const runtime = sim->runtime.get();
    Trainer trainer(runtime, spec, kind().options());
    const auto write = [&](uint32_t t, Field field, const std::vector<float>& values) {
      std::vector<float> data = values;
      return trainer.Wait(runtime->Access({.write = true,
                                           .tensor = TensorIndex(t),
                                           .field = field,
                                           .data = reinterpret_cast<std::byte*>(data.data()),
                                           .type = FloatType::kF32,
                                           .done = nullptr}));
    };
    const auto values_of = [&](uint32_t t, Field field) {
      return InitialValues(t + 50 * static_cast<uint32_t>(field), spec.tensors[t].elements);
    };
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      SCOPED_TRACE(spec.tensors[t].name);
      const bool moments = spec.tensors[t].keep == Keep::kMoments;
      const absl::Status early = trainer.Wait(runtime->Acquire(spec.tensors[t].unit));
      EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
      const Field first = moments ? Field::kExpAvgSq : Field::kMaster;
      EXPECT_EQ(trainer.Read(t, first).status().code(), absl::StatusCode::kFailedPrecondition);
      const std::vector<float> zeros(static_cast<size_t>(spec.tensors[t].elements));
      ASSERT_EQ(write(t, first, values_of(t, first)), absl::OkStatus());
      EXPECT_EQ(trainer.Read(t, Field::kExpAvg).value(), zeros);
      EXPECT_EQ(trainer.Read(t, first).value(), values_of(t, first));
      for (const Field field : {Field::kParam, Field::kMaster}) {
        if (!moments) break;
        for (const absl::Status& refused :
             {trainer.Read(t, field).status(), write(t, field, zeros)}) {
          EXPECT_EQ(refused.code(), absl::StatusCode::kNotFound);
          EXPECT_THAT(std::string(refused.message()),
                      HasSubstr("of tensor '" + spec.tensors[t].name + "' only moments are kept"));
        }
      }
    }
    constexpr Field kFields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};
    const auto kept = [&](uint32_t t, Field field) {
      return field != Field::kMaster || spec.tensors[t].keep != Keep::kMoments;
    };
    for (const Field field : kFields) {
      for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
        if (!kept(t, field)) continue;
        ASSERT_EQ(write(t, field, values_of(t, field)), absl::OkStatus());
      }
    }
    for (const Field field : kFields) {
      for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
        if (!kept(t, field)) continue;
        EXPECT_EQ(trainer.Read(t, field).value(), values_of(t, field)) << t;
      }
    }
    for (uint32_t u = 0; u < spec.units.size(); ++u) {
      EXPECT_EQ(trainer.Wait(runtime->Acquire(UnitIndex(u))), absl::OkStatus());
      EXPECT_EQ(runtime->Release(UnitIndex(u)), absl::OkStatus());
    }
  }
}

TEST_P(LentTest, AUnitIsLentWholeOrNotAtAll) {
  ModelSpec spec = Model();
  spec.tensors[2].keep = Keep::kAll;
  const absl::Status status = ModelLayout::Make(spec, kCellElements).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("block0"), std::string::npos) << status;
}

}  // namespace
}  // namespace sluice
