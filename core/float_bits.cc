#include "core/float_bits.h"

#include <bit>

#include "core/status.h"

namespace sluice {

float ToFloat(uint16_t bits, FloatType type) {
  SLUICE_CHECK(type != FloatType::kF32);
  if (type == FloatType::kBf16) return std::bit_cast<float>(uint32_t{bits} << 16);
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0x1F) {
    if (fraction != 0) fraction |= 0x200u;  // quiet
    return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  }
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  if (fraction == 0) return std::bit_cast<float>(sign);
  // fraction * 2^-24, normal in fp32: the leading bit moves to where fp32 implies it.
  const auto shift = static_cast<uint32_t>(std::countl_zero(fraction)) - 8;
  return std::bit_cast<float>(sign | (126 - shift) << 23 | ((fraction << shift) & 0x7FFFFFu));
}

uint16_t FromFloat(float value, FloatType type) {
  SLUICE_CHECK(type != FloatType::kF32);
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const bool is_nan = magnitude > 0x7F800000u;
  // `x` without its low `shift` bits, rounded to nearest even. A carry into the exponent is right.
  const auto round = [](uint32_t x, uint32_t shift) {
    const uint32_t dropped = x & ((1u << shift) - 1);
    const uint32_t half = 1u << (shift - 1);
    const uint32_t kept = x >> shift;
    return kept + (dropped > half || (dropped == half && (kept & 1u) != 0) ? 1u : 0u);
  };
  if (type == FloatType::kBf16) return static_cast<uint16_t>(is_nan ? 0x7FC0u : round(bits, 16));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t exponent = magnitude >> 23;
  uint32_t result = 0;  // below half of the smallest subnormal
  if (is_nan) {
    result = 0x7E00u;
  } else if (exponent >= 143) {  // 2^16 and more
    result = 0x7C00u;
  } else if (exponent >= 113) {
    result = round(magnitude - (112u << 23), 13);
  } else if (exponent >= 102) {
    result = round((magnitude & 0x7FFFFFu) | 0x800000u, 126 - exponent);
  }
  return static_cast<uint16_t>(sign | result);
}

}  // namespace sluice
