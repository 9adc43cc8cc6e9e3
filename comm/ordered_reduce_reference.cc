#include "comm/ordered_reduce_reference.h"

#include <cmath>
#include <vector>

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

void OrderedSumReference(std::span<const void* const> from, FloatType from_type, float scale,
                         void* to, FloatType to_type, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    std::vector<float> sums;
    for (const void* const addend : from) sums.push_back(ValueAt(addend, from_type, i));
    while (sums.size() > 1) {  // neighbours, level by level
      std::vector<float> level;
      for (size_t r = 0; r + 1 < sums.size(); r += 2)
        level.push_back(Flushed(Flushed(sums[r]) + Flushed(sums[r + 1])));
      if (sums.size() % 2 == 1) level.push_back(sums.back());
      sums = level;
    }
    const float sum = scale == 1 ? sums[0] : Flushed(Flushed(sums[0]) * scale);
    if (to_type == FloatType::kF32) {
      static_cast<float*>(to)[i] = sum;
    } else {
      static_cast<uint16_t*>(to)[i] = FromFloat(sum, to_type);
    }
  }
}

}  // namespace sluice
