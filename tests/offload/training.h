// tests/offload/training.h
//
// A small training on plain arrays: what every seam, budget and seed must agree with, bit for bit.
// The gradient of a tensor is a fixed function of step, tensor and the parameters seen in backward,
// so stale, torn or misplaced parameters change everything that follows.

#ifndef SLUICE_TESTS_OFFLOAD_TRAINING_H_
#define SLUICE_TESTS_OFFLOAD_TRAINING_H_

#include <functional>
#include <string>
#include <vector>

#include "core/executor.h"
#include "offload/layout.h"
#include "optim/adamw.h"
#include "optim/convert.h"
#include "optim/norm.h"

namespace sluice::testing {

// A model of odd sizes: several chunks in some units, several tensors in some chunks, small units.
inline ModelSpec OddModel() {
  ModelSpec spec;
  const auto add = [&spec](const std::string& name, std::vector<int64_t> sizes) {
    spec.units.push_back({.name = name});
    for (size_t i = 0; i < sizes.size(); ++i) {
      spec.tensors.push_back({.name = name + "." + std::to_string(i),
                              .unit = UnitIndex(static_cast<uint32_t>(spec.units.size() - 1)),
                              .elements = sizes[i],
                              .group = static_cast<uint32_t>(i % 2)});
    }
  };
  add("embedding", {5003});
  for (int i = 0; i < 4; ++i) add("block" + std::to_string(i), {9001, 7, 4096, 12289, 1});
  add("norm", {65});
  add("head", {8191, 3});
  return spec;
}

inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15u;
  return x ^ (x >> 29);
}

inline std::vector<float> InitialValues(uint32_t tensor, int64_t elements) {
  std::vector<float> values(static_cast<size_t>(elements));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<float>(static_cast<int64_t>(Mix(tensor * 1000003u + i) % 2001) - 1000) * 1e-3f;
  }
  return values;
}

// The gradient that step `step` gives tensor `tensor` whose parameters are `params`, in place of
// backward.
inline std::vector<std::byte> MakeGradient(int step, uint32_t tensor, const std::byte* params,
                                           FloatType param_type, FloatType grad_type,
                                           int64_t elements) {
  const auto n = static_cast<size_t>(elements);
  std::vector<float> p(n);
  Convert(params, param_type, p.data(), FloatType::kF32, n);
  for (size_t i = 0; i < n; ++i) {
    const auto noise =
        static_cast<float>(Mix(static_cast<uint64_t>(step) * 7919 + tensor * 31 + i) % 1000) *
        1e-4f;
    p[i] = 0.1f * p[i] + noise - 0.05f;
  }
  std::vector<std::byte> grad(n * static_cast<size_t>(SizeOf(grad_type)));
  Convert(p.data(), FloatType::kF32, grad.data(), grad_type, n);
  return grad;
}

struct TrainerOptions {
  int steps = 4;
  int micro_steps = 1;
  double clip_norm = 1.0;
  FloatType param_type = FloatType::kBf16;
  FloatType grad_type = FloatType::kBf16;
  // The micro-step's forward order; backward is its reverse. A unit may come several times (its
  // gradients then add up) or not at all (it is then left as it is). Empty: unit order.
  std::function<std::vector<uint32_t>(int step, size_t units)> order;

  // How many views of released units are kept alive, and must not change meanwhile.
  size_t lingering_views = 0;

  std::vector<uint32_t> Order(int step, size_t units) const {
    if (order) return order(step, units);
    std::vector<uint32_t> all;
    for (uint32_t u = 0; u < units; ++u) all.push_back(u);
    return all;
  }
};

inline std::vector<AdamWHyper> Groups() {
  return {{.lr = 1e-2, .weight_decay = 0.1},
          {.lr = 2e-2, .weight_decay = 0, .decay_mode = WeightDecayMode::kL2}};
}

// Adds to `sum`, or sets it if it is empty, what backward gives tensor `t` whose master is given.
inline void AddGradient(const TrainerOptions& o, int seed, uint32_t t,
                        const std::vector<float>& master, std::vector<std::byte>* sum) {
  std::vector<std::byte> params(master.size() * static_cast<size_t>(SizeOf(o.param_type)));
  Convert(master.data(), FloatType::kF32, params.data(), o.param_type, master.size());
  std::vector<std::byte> grad = MakeGradient(seed, t, params.data(), o.param_type, o.grad_type,
                                             static_cast<int64_t>(master.size()));
  if (sum->empty()) {
    *sum = std::move(grad);
  } else {
    Accumulate(sum->data(), grad.data(), o.grad_type, master.size());
  }
}

// The final masters of the same training on plain arrays.
inline std::vector<std::vector<float>> TrainReference(const ModelSpec& spec,
                                                      const TrainerOptions& o) {
  const ScopedFlushDenormals flush;
  const size_t tensors = spec.tensors.size();
  std::vector<std::vector<float>> master, m, v;
  for (uint32_t t = 0; t < tensors; ++t) {
    master.push_back(InitialValues(t, spec.tensors[t].elements));
    m.emplace_back(master[t].size(), 0.0f);
    v.emplace_back(master[t].size(), 0.0f);
  }
  std::vector<int64_t> updates(tensors, 0);
  for (int step = 0; step < o.steps; ++step) {
    std::vector<std::vector<std::byte>> grads(tensors);  // empty: none
    for (int micro = 0; micro < o.micro_steps; ++micro) {
      const std::vector<uint32_t> order = o.Order(step, spec.units.size());
      for (size_t i = order.size(); i > 0; --i) {
        for (uint32_t t = 0; t < tensors; ++t) {
          if (spec.tensors[t].unit != UnitIndex(order[i - 1])) continue;
          AddGradient(o, step * 16 + micro, t, master[t], &grads[t]);
        }
      }
    }
    std::vector<double> cells;
    for (uint32_t t = 0; t < tensors; ++t) {
      for (int64_t at = 0; at < spec.tensors[t].elements; at += kCellElements) {
        const int64_t n = std::min(kCellElements, spec.tensors[t].elements - at);
        cells.push_back(grads[t].empty() ? 0.0
                                         : CellSquareSum(grads[t].data() + at * SizeOf(o.grad_type),
                                                         o.grad_type, static_cast<size_t>(n)));
      }
    }
    const ClipDecision decision = DecideClip(NormOfCells(cells), 1.0, o.clip_norm);
    for (uint32_t t = 0; t < tensors; ++t) {
      if (grads[t].empty()) continue;
      AdamWUpdate(
          MakeCoefficients(Groups()[spec.tensors[t].group], ++updates[t], decision.grad_scale),
          {.master = master[t],
           .exp_avg = m[t],
           .exp_avg_sq = v[t],
           .grad = grads[t].data(),
           .grad_type = o.grad_type});
    }
  }
  return master;
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_TRAINING_H_
