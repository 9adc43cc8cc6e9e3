#include "optim/convert.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the two that say which target this is.
#include "core/convert-inl.h"

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

}  // namespace sluice
#endif  // HWY_ONCE
