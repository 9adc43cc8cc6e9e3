// tools/spec_builder.h
//
// A model's units and tensors, one after another, for planning: names and numbers of elements only.
// Products that no model has are kept as too large rather than wrapped.

#ifndef SLUICE_TOOLS_SPEC_BUILDER_H_
#define SLUICE_TOOLS_SPEC_BUILDER_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "offload/plan/layout.h"

namespace sluice::tools {

inline constexpr int64_t kParamsMax = 16'000'000'000'000;

class SpecBuilder {
 public:
  void Unit(std::string name) { spec_.units.push_back({.name = std::move(name)}); }

  // A tensor of the last unit with the product of `sizes` elements; none if one of them is 0.
  void Tensor(std::string_view name, std::initializer_list<int64_t> sizes) {
    double elements = 1;
    for (const int64_t size : sizes) elements *= static_cast<double>(size);
    total_ += elements;
    if (elements == 0 || too_large()) return;
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    const auto unit = static_cast<uint32_t>(spec_.units.size() - 1);
    spec_.tensors.push_back({.name = fmt::format("{}.{}", spec_.units.back().name, name),
                             .unit = UnitIndex(unit),
                             .elements = count,
                             .group = 0});
  }

  // A matrix, and a vector of `out` beside it if `bias` is 1 rather than 0.
  void Linear(std::string_view name, int64_t in, int64_t out, int64_t bias = 1) {
    Tensor(fmt::format("{}.weight", name), {in, out});
    Tensor(fmt::format("{}.bias", name), {out, bias});
  }

  // Exact below kParamsMax.
  double total() const { return total_; }
  bool too_large() const { return total_ > static_cast<double>(kParamsMax); }
  ModelSpec Take() { return std::move(spec_); }

 private:
  ModelSpec spec_;
  double total_ = 0;
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_SPEC_BUILDER_H_
