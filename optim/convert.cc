#include "optim/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU = hn::Rebind<uint32_t, DF>;
using DI = hn::Rebind<int32_t, DF>;
using DH = hn::Rebind<uint16_t, DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

// 16 bits in the low half of each 32-bit lane <-> float. Integer arithmetic, but for the subnormals
// of fp16, where one exact multiplication, or one addition with the hardware's own rounding to
// nearest even, does it.
template <FloatType kType>
HWY_INLINE VF Expand(VU h) {
  const DF df;
  const DU du;
  if constexpr (kType == FloatType::kBf16) return hn::BitCast(df, hn::ShiftLeft<16>(h));
  const VU sign = hn::ShiftLeft<16>(hn::And(h, hn::Set(du, 0x8000u)));
  const VU magnitude = hn::And(h, hn::Set(du, 0x7FFFu));
  const VU normal = hn::Add(hn::ShiftLeft<13>(magnitude), hn::Set(du, 112u << 23));
  const VU quiet =
      hn::IfThenElseZero(hn::Gt(magnitude, hn::Set(du, 0x7C00u)), hn::Set(du, 0x400000u));
  const VU special = hn::Or(hn::Add(normal, hn::Set(du, 112u << 23)), quiet);
  const VF count = hn::ConvertTo(df, hn::BitCast(DI(), magnitude));
  const VU subnormal = hn::BitCast(du, hn::Mul(count, hn::Set(df, 0x1p-24f)));
  const auto is_special = hn::Gt(magnitude, hn::Set(du, 0x7BFFu));
  const auto is_subnormal = hn::Lt(magnitude, hn::Set(du, 0x400u));
  const VU value =
      hn::IfThenElse(is_special, special, hn::IfThenElse(is_subnormal, subnormal, normal));
  return hn::BitCast(df, hn::Or(value, sign));
}

template <FloatType kType>
HWY_INLINE VU Shrink(VF f) {
  const DF df;
  const DU du;
  const VU bits = hn::BitCast(du, f);
  const VU magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7F800000u));
  if constexpr (kType == FloatType::kBf16) {
    const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const VU rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu))));
    return hn::IfThenElse(is_nan, hn::Set(du, 0x7FC0u), rounded);
  }
  const VU sign = hn::ShiftRight<16>(hn::And(bits, hn::Set(du, 0x80000000u)));
  const VU odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const VU rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xFFFu)));
  const VU normal = hn::ShiftRight<13>(hn::Sub(rounded, hn::Set(du, 112u << 23)));
  const VF shifted = hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f));
  const VU subnormal = hn::Sub(hn::BitCast(du, shifted), hn::Set(du, 0x3F000000u));
  const VU infinity = hn::Set(du, 0x7C00u);
  VU value = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x38800000u)), subnormal, normal);
  value = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x477FFFFFu)), infinity, value);
  value = hn::IfThenElse(is_nan, hn::Set(du, 0x7E00u), value);
  return hn::Or(value, sign);
}

template <FloatType kType>
HWY_INLINE VF Load(const void* values, size_t i) {
  const DF df;
  if constexpr (kType == FloatType::kF32) {
    return hn::LoadU(df, static_cast<const float*>(values) + i);
  } else {
    return Expand<kType>(
        hn::PromoteTo(DU(), hn::LoadU(DH(), static_cast<const uint16_t*>(values) + i)));
  }
}

template <FloatType kType>
HWY_INLINE void Store(VF v, void* values, size_t i) {
  if constexpr (kType == FloatType::kF32) {
    hn::StoreU(v, DF(), static_cast<float*>(values) + i);
  } else {
    const auto narrow = hn::DemoteTo(DH(), hn::BitCast(DI(), Shrink<kType>(v)));
    hn::StoreU(narrow, DH(), static_cast<uint16_t*>(values) + i);
  }
}

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
