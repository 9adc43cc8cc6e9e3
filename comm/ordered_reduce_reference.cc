#include "comm/ordered_reduce_reference.h"

#include <cmath>

#include "core/float_bits.h"

namespace sluice {

namespace {

float ValueAt(const void* values, FloatType type, size_t i) {
  return type == FloatType::kF32 ? static_cast<const float*>(values)[i]
                                 : ToFloat(static_cast<const uint16_t*>(values)[i], type);
}

float Flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

}  // namespace

void OrderedSumReference(std::span<const void* const> from, FloatType from_type, void* to,
                         FloatType to_type, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    float sum = ValueAt(from[0], from_type, i);
    for (const void* const addend : from.subspan(1))
      sum = Flushed(Flushed(sum) + Flushed(ValueAt(addend, from_type, i)));
    if (to_type == FloatType::kF32) {
      static_cast<float*>(to)[i] = sum;
    } else {
      static_cast<uint16_t*>(to)[i] = FromFloat(sum, to_type);
    }
  }
}

}  // namespace sluice
