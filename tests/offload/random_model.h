// tests/offload/random_model.h
//
// RapidCheck's source of models: a few units with a few tensors of sizes that are multiples of
// nothing, the tensors of different units in any order, units of any types.

#ifndef SLUICE_TESTS_OFFLOAD_RANDOM_MODEL_H_
#define SLUICE_TESTS_OFFLOAD_RANDOM_MODEL_H_

#include <rapidcheck.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/grid.h"
#include "offload/plan/layout.h"

namespace sluice {

inline UnitTypes AnyFloatTypes() {
  const auto type = rc::gen::element(FloatType::kF32, FloatType::kBf16, FloatType::kF16);
  return {.param = *type, .grad = *type};
}

// Some of bytes, whose tensors are then frozen; some say none.
inline std::optional<UnitTypes> AnyUnitTypes() {
  const int kind = *rc::gen::inRange(0, 6);
  if (kind < 2) return std::nullopt;
  return kind == 2 ? UnitTypes{.param = ElementType::Bytes()} : AnyFloatTypes();
}

inline ModelSpec AnyModel() {
  ModelSpec spec;
  const auto units = *rc::gen::inRange<uint32_t>(1, 6);
  std::vector<uint32_t> owners;
  for (uint32_t u = 0; u < units; ++u) {
    spec.units.push_back({.name = "unit" + std::to_string(u),
                          .stays_in_hbm = *rc::gen::inRange(0, 5) == 0,
                          .types = AnyUnitTypes()});
    owners.insert(owners.end(), *rc::gen::inRange<size_t>(1, 5), u);
  }
  // Many tensors are tiny, some are several cells long.
  const auto size =
      rc::gen::oneOf(rc::gen::inRange<int64_t>(1, 130), rc::gen::inRange<int64_t>(1, 30'000),
                     rc::gen::element<int64_t>(4095, 4096, 4097, 8192));
  for (size_t i = owners.size(); i > 1; --i)
    std::swap(owners[i - 1], owners[*rc::gen::inRange<size_t>(0, i)]);
  for (const uint32_t owner : owners) {
    const std::optional<UnitTypes>& types = spec.units[owner].types;
    spec.tensors.push_back({.name = "tensor" + std::to_string(spec.tensors.size()),
                            .unit = UnitIndex(owner),
                            .elements = *size,
                            .group = 0,
                            .keep = types && types->param.is_bytes() ? Keep::kParam : Keep::kAll});
  }
  return spec;
}

inline int64_t AnyChunkElements() { return kCellElements * *rc::gen::inRange<int64_t>(1, 5); }

}  // namespace sluice

namespace rc {

// What a failure prints.
inline void showValue(const sluice::ModelSpec& spec, std::ostream& out) {
  for (const auto& tensor : spec.tensors) {
    const auto& types = spec.units[tensor.unit.value()].types;
    out << "{unit " << tensor.unit.value() << ": " << tensor.elements << " "
        << (types ? types->param.name() : "") << "} ";
  }
}

}  // namespace rc

#endif  // SLUICE_TESTS_OFFLOAD_RANDOM_MODEL_H_
