// tests/offload/lent.h
//
// Models of which parameters stay with the caller, and masters too or not; and their training.

#ifndef SLUICE_TESTS_OFFLOAD_LENT_H_
#define SLUICE_TESTS_OFFLOAD_LENT_H_

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "offload/sim/sim_factory.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice::testing {

inline constexpr FloatType kGradType = FloatType::kBf16;

// What is kept of the tensors, by turns, and of what type the parameters are.
struct Lent {
  const char* name;
  Keep even;
  Keep odd;
  FloatType type;
  Keep KeepOf(uint32_t t) const { return t % 2 == 0 ? even : odd; }
  TrainerOptions options(int steps = 3) const {
    return {.steps = steps, .param_type = type, .grad_type = kGradType};
  }
  std::vector<std::byte> Rounded(const std::vector<float>& values) const {
    return ParamsOf(values, type);
  }
};
inline constexpr Lent kKinds[] = {{"Bf16States", Keep::kStates, Keep::kStates, FloatType::kBf16},
                                  {"Fp16States", Keep::kStates, Keep::kStates, FloatType::kF16},
                                  {"Fp32States", Keep::kStates, Keep::kStates, FloatType::kF32},
                                  {"Moments", Keep::kMoments, Keep::kMoments, FloatType::kF32},
                                  {"Both", Keep::kStates, Keep::kMoments, FloatType::kF32}};

inline ModelSpec LentModel(const Lent& kind) {
  ModelSpec spec = OddModel();
  for (uint32_t t = 0; t < spec.tensors.size(); ++t) spec.tensors[t].keep = kind.KeepOf(t);
  return spec;
}

// Budgets and buffers of a seed, with states where they fit, in RAM, asked for in HBM, or on
// drives all of them.
inline RuntimeConfig LentConfig(uint64_t seed, const ModelSpec& spec) {
  RuntimeConfig config = ConfigOf(seed);
  config.budgets.hbm = Bytes(0);
  config.highest_state_tier_on_host = Tier::kHbm;
  if (seed % 4 == 1) config.nvme_paths.clear();
  if (seed % 4 == 2) config.placement.lowest_state_tier = Tier::kHbm;
  if (seed % 4 == 1 || seed % 4 == 2) config.budgets.pinned = MiB(8);
  if (seed % 4 == 3) config.budgets = SmallestBudgets(spec, config);
  return config;
}

class LentTest : public ::testing::TestWithParam<Lent> {
 protected:
  const Lent& kind() const { return GetParam(); }
  ModelSpec Model() const { return LentModel(kind()); }
};
enum class Lending { kNone, kSome, kAll };  // of gradients

// All of them, in calls of `size` tensors each.
inline absl::Status PushAll(OffloadRuntime* runtime, Trainer* trainer, Lending lending, size_t size,
                            const std::vector<std::vector<std::byte>>& grads) {
  std::vector<GivenGradient> given;
  for (uint32_t t = 0; t < grads.size(); ++t) {
    const bool lent = lending == Lending::kAll || (lending == Lending::kSome && t % 2 == 0);
    given.push_back({TensorIndex(t), grads[t], lent});
    if (given.size() < size && t + 1 < grads.size()) continue;
    SLUICE_RETURN_IF_ERROR(trainer->Wait(runtime->PushGrads(std::exchange(given, {}))));
  }
  return absl::OkStatus();
}

// Parameters that stay with the caller, at first as loaded.
class Params {
 public:
  Params(const Lent& kind, const ModelSpec& spec) {
    for (uint32_t t = 0; t < spec.tensors.size(); ++t)
      values.push_back(kind.Rounded(InitialValues(t, spec.tensors[t].elements)));
    for (std::vector<std::byte>& value : values) places.push_back({value.data(), kind.type});
  }
  Params(const Params&) = delete;
  Params& operator=(const Params&) = delete;

  std::vector<std::vector<std::byte>> values;
  std::vector<ParamPlace> places;
};

// Trains a model whose parameters stay here.
inline absl::Status TrainLent(OffloadRuntime* runtime, const Lent& kind, Params* params,
                              Lending lending = Lending::kNone, size_t call_size = 1) {
  const ModelSpec spec = LentModel(kind);
  const TrainerOptions options = kind.options();
  Trainer trainer(runtime, spec, options);
  SLUICE_RETURN_IF_ERROR(trainer.Load());
  for (int step = 0; step < options.steps; ++step) {
    runtime->BeginIteration(1, true);
    std::vector<std::vector<std::byte>> grads;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      // Waits for the unit's update, and for no more.
      const UnitIndex unit = spec.tensors[t].unit;
      SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->Acquire(unit)));
      grads.push_back(MakeGradient(step * 16, t, params->values[t].data(), kind.type, kGradType,
                                   spec.tensors[t].elements));
      SLUICE_RETURN_IF_ERROR(runtime->Release(unit));
    }
    runtime->EndIteration();
    SLUICE_RETURN_IF_ERROR(PushAll(runtime, &trainer, lending, call_size, grads));
    SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->Step(
        {.groups = Groups(), .lent = params->places, .clip_norm = options.clip_norm})));
    if (lending != Lending::kNone) SLUICE_RETURN_IF_ERROR(trainer.Wait(runtime->Drain()));
  }
  return trainer.Wait(runtime->Drain());
}

// What a training must come to, on plain arrays.
struct Expected {
  Masters masters, exp_avg, exp_avg_sq;
  Expected(const ModelSpec& spec, const TrainerOptions& options)
      : exp_avg(spec.tensors.size()), exp_avg_sq(spec.tensors.size()) {
    masters = TrainReferenceBy(spec, options, [this](const ReferenceUpdate& u) {
      exp_avg[u.tensor].resize(u.master->size());
      exp_avg_sq[u.tensor].resize(u.master->size());
      AdamWUpdate(MakeCoefficients(AdamWGroups()[u.group], u.step, u.grad_scale),
                  {.master = *u.master,
                   .exp_avg = exp_avg[u.tensor],
                   .exp_avg_sq = exp_avg_sq[u.tensor],
                   .grad = u.grad,
                   .grad_type = u.types.grad});
    });
  }
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_LENT_H_
