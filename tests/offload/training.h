// tests/offload/training.h
//
// A small training, whose result every seam, budget and seed must agree on, bit for bit: that of
// train_reference.h. The gradient of a tensor is a fixed function of step, tensor and the
// parameters seen in backward, so stale, torn or misplaced parameters change everything that
// follows. Units may be of any types, and tensors frozen: those must come out as they went in.

#ifndef SLUICE_TESTS_OFFLOAD_TRAINING_H_
#define SLUICE_TESTS_OFFLOAD_TRAINING_H_

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "offload/plan/layout.h"
#include "optim/adamw.h"
#include "optim/convert.h"
#include "optim/update_rule.h"

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

// OddModel, with types of its own for most units, some tensors frozen, and a unit of bytes, all
// drawn from the seed.
inline ModelSpec MixedModel(uint64_t seed) {
  uint64_t dice = Mix(seed + 77);
  const auto draw = [&dice](uint64_t n) { return (dice = Mix(dice + 1)) % n; };
  constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
  ModelSpec spec = OddModel();
  for (ModelSpec::Unit& unit : spec.units) {
    if (draw(4) != 0) unit.types = {.param = kTypes[draw(3)], .grad = kTypes[draw(3)]};
  }
  for (ModelSpec::Tensor& tensor : spec.tensors) {
    if (draw(5) == 0) tensor.keep = Keep::kParam;
  }
  spec.tensors[0].keep = Keep::kAll;  // something to train
  const auto quantized = static_cast<uint32_t>(draw(spec.units.size()));
  spec.units.insert(spec.units.begin() + quantized,
                    {.name = "quantized", .types = UnitTypes{.param = ElementType::Bytes()}});
  for (ModelSpec::Tensor& tensor : spec.tensors) {
    if (tensor.unit.value() >= quantized) tensor.unit = UnitIndex(tensor.unit.value() + 1);
  }
  for (const int64_t elements : {int64_t{9001}, int64_t{1}, int64_t{4096}}) {
    spec.tensors.push_back({.name = "quantized." + std::to_string(elements),
                            .unit = UnitIndex(quantized),
                            .elements = elements,
                            .keep = Keep::kParam});
  }
  return spec;
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

inline std::vector<AdamWHyper> AdamWGroups() {
  return {{.lr = 1e-2, .weight_decay = 0.1},
          {.lr = 2e-2, .weight_decay = 0, .decay_mode = WeightDecayMode::kL2}};
}
// The groups of a step, of a rule whose hyperparameters are an H.
template <typename H>
std::vector<Hyperparameters> GroupsOf(const std::vector<H>& groups) {
  std::vector<Hyperparameters> all;
  for (const H& group : groups) all.push_back(Hyperparameters::Of(group));
  return all;
}
inline std::vector<Hyperparameters> Groups() { return GroupsOf(AdamWGroups()); }

struct TrainerOptions {
  int steps = 4;
  int micro_steps = 1;
  double clip_norm = 1.0;
  std::vector<Hyperparameters> groups = Groups();
  FloatType param_type = FloatType::kBf16;
  FloatType grad_type = FloatType::kBf16;
  // The micro-step's forward order; backward is its reverse. A unit may come several times (its
  // gradients then add up) or not at all (it is then left as it is). Empty: unit order.
  std::function<std::vector<uint32_t>(int step, size_t units)> order;

  // Among ranks, each of which has gradients of its own. `rank_order`, if set, is instead of
  // `order`.
  uint32_t rank = 0;
  uint32_t ranks = 1;
  std::function<std::vector<uint32_t>(uint32_t rank, int step, size_t units)> rank_order;

  // Asked while something is waited for that is not done: whether to wait no longer.
  std::function<bool()> give_up = [] { return false; };

  // How many views of released units are kept alive, and must not change meanwhile.
  size_t lingering_views = 0;

  // How many units' gradients may be under way in backward before it waits for them: so far it may
  // be ahead of its stream.
  size_t units_ahead = 0;

  // Of a tensor of `spec`; param_type and grad_type are of units that say none.
  UnitTypes TypesOf(const ModelSpec& spec, uint32_t tensor) const {
    return spec.units[spec.tensors[tensor].unit.value()].types.value_or(
        UnitTypes{.param = param_type, .grad = grad_type});
  }

  static int SeedOf(uint32_t of_rank, int step, int micro) {
    return static_cast<int>(of_rank) * 4096 + step * 16 + micro;
  }

  std::vector<uint32_t> Order(int step, size_t units) const { return Order(rank, step, units); }
  std::vector<uint32_t> Order(uint32_t of_rank, int step, size_t units) const {
    if (rank_order) return rank_order(of_rank, step, units);
    if (order) return order(step, units);
    std::vector<uint32_t> all;
    for (uint32_t u = 0; u < units; ++u) all.push_back(u);
    return all;
  }
};

// The compute copy of a tensor whose values are given; of bytes, those that the values count.
inline std::vector<std::byte> ParamsOf(const std::vector<float>& values, ElementType type) {
  std::vector<std::byte> params(values.size() * static_cast<size_t>(type.size()));
  if (!type.is_bytes()) {
    Convert(values.data(), FloatType::kF32, params.data(), type.floats(), values.size());
    return params;
  }
  for (size_t i = 0; i < values.size(); ++i) params[i] = static_cast<std::byte>(values[i]);
  return params;
}

inline std::vector<float> ValuesOf(const std::vector<std::byte>& params, ElementType type) {
  std::vector<float> values(params.size() / static_cast<size_t>(type.size()));
  if (!type.is_bytes()) {
    Convert(params.data(), type.floats(), values.data(), FloatType::kF32, values.size());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(std::to_integer<int>(params[i]));
  return values;
}

// What tensor `t` is loaded with.
inline std::vector<float> InitialOf(const ModelSpec& spec, const TrainerOptions& o, uint32_t t) {
  std::vector<float> values = InitialValues(t, spec.tensors[t].elements);
  if (!o.TypesOf(spec, t).param.is_bytes()) return values;
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(Mix(t * 31 + i) % 256);
  return values;
}

// Whether the parameters in `slot` are those that `unit` is loaded with.
inline bool HoldsLoaded(const std::byte* slot, const ModelSpec& spec, const ModelLayout& layout,
                        const TrainerOptions& o, UnitIndex unit) {
  return std::ranges::all_of(layout.unit(unit).tensors, [&](TensorIndex t) {
    const ElementType type = o.TypesOf(spec, t.value()).param;
    const std::vector<std::byte> params = ParamsOf(InitialOf(spec, o, t.value()), type);
    const int64_t at = layout.tensor(t).offset * type.size();
    return std::equal(params.begin(), params.end(), slot + at);
  });
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_TRAINING_H_
