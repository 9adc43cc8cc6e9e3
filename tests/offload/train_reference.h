// tests/offload/train_reference.h
//
// The training of training.h on plain arrays, without a runtime.

#ifndef SLUICE_TESTS_OFFLOAD_TRAIN_REFERENCE_H_
#define SLUICE_TESTS_OFFLOAD_TRAIN_REFERENCE_H_

#include <algorithm>
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
      const std::vector<uint32_t> order = o.Order(step, spec.units.size());
      for (size_t i = order.size(); i > 0; --i) {
        for (uint32_t t = 0; t < tensors; ++t) {
          if (spec.tensors[t].unit != UnitIndex(order[i - 1])) continue;
          if (spec.tensors[t].keep == Keep::kParam) continue;
          AddGradient(o.TypesOf(spec, t), step * 16 + micro, t, master[t], &grads[t]);
        }
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
