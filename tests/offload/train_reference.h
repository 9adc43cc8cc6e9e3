// tests/offload/train_reference.h
//
// The training of training.h on plain arrays, without a runtime.

#ifndef SLUICE_TESTS_OFFLOAD_TRAIN_REFERENCE_H_
#define SLUICE_TESTS_OFFLOAD_TRAIN_REFERENCE_H_

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/executor.h"
#include "optim/adamw.h"
#include "optim/norm.h"
#include "tests/offload/training.h"

namespace sluice::testing {

// Adds to `sum`, or sets it if it is empty, what backward gives tensor `t` whose master is given.
inline void AddGradient(const UnitTypes& types, int seed, uint32_t t,
                        const std::vector<float>& master, std::vector<std::byte>* sum) {
  std::vector<std::byte> grad =
      MakeGradient(seed, t, ParamsOf(master, types.param).data(), types.param.floats(), types.grad,
                   static_cast<int64_t>(master.size()));
  if (sum->empty()) {
    *sum = std::move(grad);
  } else {
    Accumulate(sum->data(), grad.data(), types.grad, master.size());
  }
}

// Adds those of a rank's micro-step, by tensor; or, where a unit comes several times, only those of
// its `turn`-th time, from 0.
inline void AddGradients(const ModelSpec& spec, const TrainerOptions& o, uint32_t rank, int step,
                         int micro, const std::vector<std::vector<float>>& master,
                         std::vector<std::vector<std::byte>>* sums,
                         std::optional<size_t> turn = std::nullopt) {
  const std::vector<uint32_t> order = o.Order(rank, step, spec.units.size());
  std::vector<size_t> times(spec.units.size(), 0);
  for (size_t i = order.size(); i > 0; --i) {
    const size_t time = times[order[i - 1]]++;
    if (turn && time != *turn) continue;
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      if (spec.tensors[t].unit != UnitIndex(order[i - 1])) continue;
      if (spec.tensors[t].keep == Keep::kParam) continue;
      AddGradient(o.TypesOf(spec, t), o.SeedOf(rank, step, micro), t, master[t], &(*sums)[t]);
    }
  }
}

// The mean of the ranks' gradients of a tensor: the sum of neighbours, of neighbouring pairs, and
// so on, times 1 / ranks, in fp32, rounded once. A rank that has none adds zeros.
inline std::vector<std::byte> MeanOfRanks(const std::vector<std::vector<std::byte>>& grads,
                                          FloatType type, size_t elements) {
  std::vector<std::vector<float>> sums;
  for (const std::vector<std::byte>& grad : grads) {
    sums.emplace_back(elements);
    if (!grad.empty()) Convert(grad.data(), type, sums.back().data(), FloatType::kF32, elements);
  }
  while (sums.size() > 1) {
    std::vector<std::vector<float>> level;
    for (size_t r = 0; r < sums.size(); r += 2) {
      level.push_back(std::move(sums[r]));
      for (size_t i = 0; r + 1 < sums.size() && i < elements; ++i)
        level.back()[i] += sums[r + 1][i];
    }
    sums = std::move(level);
  }
  for (float& value : sums[0]) value *= 1.0f / static_cast<float>(grads.size());
  std::vector<std::byte> mean(elements * static_cast<size_t>(SizeOf(type)));
  Convert(sums[0].data(), FloatType::kF32, mean.data(), type, elements);
  return mean;
}

// The same of all ranks together. What a rank has of a unit for the k-th time is added to what the
// others have of it for the k-th time.
inline void AddMeans(const ModelSpec& spec, const TrainerOptions& o, int step, int micro,
                     const std::vector<std::vector<float>>& master,
                     std::vector<std::vector<std::byte>>* sums) {
  constexpr size_t kTurns = 4;
  for (size_t turn = 0; turn < kTurns; ++turn) {
    std::vector<std::vector<std::vector<std::byte>>> by_rank(o.ranks);
    for (uint32_t r = 0; r < o.ranks; ++r) {
      by_rank[r].resize(spec.tensors.size());
      AddGradients(spec, o, r, step, micro, master, &by_rank[r], turn);
    }
    for (uint32_t t = 0; t < spec.tensors.size(); ++t) {
      std::vector<std::vector<std::byte>> grads;
      for (auto& of_rank : by_rank) grads.push_back(std::move(of_rank[t]));
      if (std::ranges::all_of(grads, [](const auto& grad) { return grad.empty(); })) continue;
      const FloatType type = o.TypesOf(spec, t).grad;
      std::vector<std::byte> mean = MeanOfRanks(grads, type, master[t].size());
      if ((*sums)[t].empty()) {
        (*sums)[t] = std::move(mean);
      } else {
        Accumulate((*sums)[t].data(), mean.data(), type, master[t].size());
      }
    }
  }
}

// What the reference is told of an update of a tensor's `master`: its `step`-th, from 1.
struct ReferenceUpdate {
  uint32_t tensor;
  uint32_t group;
  int64_t step;
  float grad_scale;
  const std::byte* grad;
  UnitTypes types;
  std::vector<float>* master;
};

// The final masters of the same training on plain arrays, each changed by `update`.
template <typename F>
std::vector<std::vector<float>> TrainReferenceBy(const ModelSpec& spec, const TrainerOptions& o,
                                                 F&& update) {
  const ScopedFlushDenormals flush;
  const size_t tensors = spec.tensors.size();
  std::vector<std::vector<float>> master;
  for (uint32_t t = 0; t < tensors; ++t) {
    master.push_back(InitialOf(spec, o, t));
    const ElementType type = o.TypesOf(spec, t).param;
    if (spec.tensors[t].keep == Keep::kParam) master[t] = ValuesOf(ParamsOf(master[t], type), type);
  }
  std::vector<int64_t> updates(tensors, 0);
  for (int step = 0; step < o.steps; ++step) {
    std::vector<std::vector<std::byte>> grads(tensors);  // empty: none
    for (int micro = 0; micro < o.micro_steps; ++micro) {
      if (o.ranks > 1) {
        AddMeans(spec, o, step, micro, master, &grads);
      } else {
        AddGradients(spec, o, o.rank, step, micro, master, &grads);
      }
    }
    std::vector<double> cells;
    for (uint32_t t = 0; t < tensors; ++t) {
      for (int64_t at = 0; at < spec.tensors[t].elements; at += kCellElements) {
        const int64_t n = std::min(kCellElements, spec.tensors[t].elements - at);
        const FloatType type = o.TypesOf(spec, t).grad;
        cells.push_back(grads[t].empty() ? 0.0
                                         : CellSquareSum(grads[t].data() + at * SizeOf(type), type,
                                                         static_cast<size_t>(n)));
      }
    }
    const ClipDecision decision = DecideClip(NormOfCells(cells), 1.0, o.clip_norm);
    for (uint32_t t = 0; t < tensors; ++t) {
      if (grads[t].empty()) continue;
      update(ReferenceUpdate{.tensor = t,
                             .group = spec.tensors[t].group,
                             .step = ++updates[t],
                             .grad_scale = decision.grad_scale,
                             .grad = grads[t].data(),
                             .types = o.TypesOf(spec, t),
                             .master = &master[t]});
    }
  }
  return master;
}

inline std::vector<std::vector<float>> TrainReference(const ModelSpec& spec,
                                                      const TrainerOptions& o) {
  std::vector<std::vector<float>> m(spec.tensors.size()), v(spec.tensors.size());
  return TrainReferenceBy(spec, o, [&](const ReferenceUpdate& u) {
    m[u.tensor].resize(u.master->size());
    v[u.tensor].resize(u.master->size());
    AdamWUpdate(MakeCoefficients(AdamWGroups()[u.group], u.step, u.grad_scale),
                {.master = *u.master,
                 .exp_avg = m[u.tensor],
                 .exp_avg_sq = v[u.tensor],
                 .grad = u.grad,
                 .grad_type = u.types.grad});
  });
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_TRAIN_REFERENCE_H_
