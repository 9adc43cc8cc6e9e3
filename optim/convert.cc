#include "optim/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "optim/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

// Runs `step` over all elements; the last, incomplete vector goes through buffers, so that every
// element takes the same path whatever its place.
template <FloatType kFrom, FloatType kTo, bool kAdd>
void Apply(const void* from, void* to, size_t n) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const auto step = [](const void* a, void* b, size_t i) {
    VF v = Load<kFrom>(a, i);
    if constexpr (kAdd) v = hn::Add(Load<kTo>(b, i), v);
    Store<kTo>(v, b, i);
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) step(from, to, i);
  if (i == n) return;
  alignas(64) float tail_from[HWY_MAX_BYTES / 4] = {};
  alignas(64) float tail_to[HWY_MAX_BYTES / 4] = {};
  constexpr size_t kFromSize = SizeOf(kFrom), kToSize = SizeOf(kTo);
  std::memcpy(tail_from, static_cast<const std::byte*>(from) + i * kFromSize, (n - i) * kFromSize);
  if (kAdd)
    std::memcpy(tail_to, static_cast<const std::byte*>(to) + i * kToSize, (n - i) * kToSize);
  step(tail_from, tail_to, 0);
  std::memcpy(static_cast<std::byte*>(to) + i * kToSize, tail_to, (n - i) * kToSize);
}

using ApplyFunction = void (*)(const void*, void*, size_t);

void ConvertAll(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n) {
  using enum FloatType;
  static constexpr ApplyFunction kTable[3][3] = {
      {Apply<kF32, kF32, false>, Apply<kF32, kBf16, false>, Apply<kF32, kF16, false>},
      {Apply<kBf16, kF32, false>, Apply<kBf16, kBf16, false>, Apply<kBf16, kF16, false>},
      {Apply<kF16, kF32, false>, Apply<kF16, kBf16, false>, Apply<kF16, kF16, false>}};
  kTable[static_cast<size_t>(from_type)][static_cast<size_t>(to_type)](from, to, n);
}

void AccumulateAll(void* into, const void* from, FloatType type, size_t n) {
  using enum FloatType;
  static constexpr ApplyFunction kTable[3] = {Apply<kF32, kF32, true>, Apply<kBf16, kBf16, true>,
                                              Apply<kF16, kF16, true>};
  kTable[static_cast<size_t>(type)](from, into, n);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(ConvertAll);
HWY_EXPORT(AccumulateAll);

void Convert(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n) {
  if (from_type == to_type) {
    if (from != to && n != 0) std::memcpy(to, from, n * static_cast<size_t>(SizeOf(from_type)));
    return;
  }
  HWY_DYNAMIC_DISPATCH(ConvertAll)(from, from_type, to, to_type, n);
}

void Accumulate(void* into, const void* from, FloatType type, size_t n) {
  HWY_DYNAMIC_DISPATCH(AccumulateAll)(into, from, type, n);
}

void AdoptChanged(const void* param, FloatType type, float* master, size_t n) {
  if (type == FloatType::kF32) return Convert(param, type, master, type, n);
  constexpr size_t kPiece = 1024;
  uint16_t expected[kPiece];
  const auto* values = static_cast<const uint16_t*>(param);
  for (size_t at = 0; at < n; at += kPiece) {
    const size_t length = std::min(kPiece, n - at);
    Convert(master + at, FloatType::kF32, expected, type, length);
    if (std::memcmp(expected, values + at, length * sizeof(uint16_t)) == 0) continue;
    for (size_t i = 0; i < length; ++i) {
      if (expected[i] != values[at + i]) master[at + i] = ToFloat(values[at + i], type);
    }
  }
}

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
#endif  // HWY_ONCE
