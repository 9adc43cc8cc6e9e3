// core/convert-inl.h
//
// The conversions of float_bits.h as vector code, for kernels: a vector of fp32 from or to any
// float type in memory. Included once for each vector target, after highway.h.

#if defined(SLUICE_CORE_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_CORE_CONVERT_INL_H_
#undef SLUICE_CORE_CONVERT_INL_H_
#else
#define SLUICE_CORE_CONVERT_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "core/grid.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 512 bits, also where vectors are longer: loops take two vectors of a block at a time.
using DF = hn::CappedTag<float, 16>;
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

// Whether StorePair can go past the caches, and from where on it may.
constexpr bool kCanStream = HWY_TARGET != HWY_SCALAR;
HWY_INLINE bool IsAligned(const void* values) {
  return reinterpret_cast<uintptr_t>(values) % (hn::Lanes(DF()) * sizeof(float)) == 0;
}

// Two vectors side by side, so that 16-bit types too fill whole vectors. `stream`: past the caches,
// without fetching the line first; `values` is aligned, i a multiple of the pair, and whoever tells
// another thread calls hwy::FlushStream before.
template <FloatType kType>
HWY_INLINE void StorePair(VF first, VF second, void* values, size_t i, bool stream) {
  const size_t lanes = hn::Lanes(DF());
  if constexpr (kType == FloatType::kF32) {
    float* const to = static_cast<float*>(values) + i;
    if (stream) {
      hn::Stream(first, DF(), to);
      hn::Stream(second, DF(), to + lanes);
    } else {
      hn::StoreU(first, DF(), to);
      hn::StoreU(second, DF(), to + lanes);
    }
  } else {
#if HWY_TARGET == HWY_SCALAR
    Store<kType>(first, values, i);
    Store<kType>(second, values, i + lanes);
#else
    const hn::Repartition<uint16_t, DF> whole;
    const auto low = hn::DemoteTo(DH(), hn::BitCast(DI(), Shrink<kType>(first)));
    const auto high = hn::DemoteTo(DH(), hn::BitCast(DI(), Shrink<kType>(second)));
    const auto both = hn::Combine(whole, high, low);
    uint16_t* const to = static_cast<uint16_t*>(values) + i;
    if (stream) {
      hn::Stream(both, whole, to);
    } else {
      hn::StoreU(both, whole, to);
    }
#endif
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_CORE_CONVERT_INL_H_
