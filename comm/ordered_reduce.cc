#include "comm/ordered_reduce.h"

#include <bit>
#include <cstring>

#include "absl/container/inlined_vector.h"
#include "comm/cuda/kernels.h"
#include "core/executor.h"
#include "core/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/ordered_reduce.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the two that say which target this is.
#include "core/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

// Four vectors at a time, so that a rank's values are read in whole cache lines.
struct Four {
  VF a, b, c, d;
};
HWY_INLINE VF Plus(VF x, VF y) { return hn::Add(x, y); }
HWY_INLINE Four Plus(const Four& x, const Four& y) {
  return {hn::Add(x.a, y.a), hn::Add(x.b, y.b), hn::Add(x.c, y.c), hn::Add(x.d, y.d)};
}

// The sum of `count` ranks' values from `first` on, as the tree has them; load(r) are those of rank
// r.
template <typename V, typename LoadRank>
V TreeSum(const LoadRank& load, size_t first, size_t count) {
  if (count == 1) return load(first);
  const size_t left = std::bit_floor(count - 1);
  const V sum = TreeSum<V>(load, first, left);
  return Plus(sum, TreeSum<V>(load, first + left, count - left));
}

HWY_INLINE VF Scaled(VF sum, float scale) {
  return scale == 1 ? sum : hn::Mul(sum, hn::Set(DF(), scale));
}

// What is left is less than a vector; it goes through buffers, so that every element takes the same
// path whatever its place.
template <FloatType kFrom, FloatType kTo>
void SumRest(const void* const* from, size_t count, float scale, void* to, size_t begin, size_t n) {
  constexpr size_t kFromSize = SizeOf(kFrom), kToSize = SizeOf(kTo);
  alignas(64) float buffer[HWY_MAX_BYTES / 4] = {};
  const auto load = [&](size_t r) {
    std::memcpy(buffer, static_cast<const std::byte*>(from[r]) + begin * kFromSize, n * kFromSize);
    return Load<kFrom>(buffer, 0);
  };
  Store<kTo>(Scaled(TreeSum<VF>(load, 0, count), scale), buffer, 0);
  std::memcpy(static_cast<std::byte*>(to) + begin * kToSize, buffer, n * kToSize);
}

template <FloatType kFrom, FloatType kTo>
void SumOf(const void* const* from, size_t count, float scale, void* to, size_t n) {
  const size_t lanes = hn::Lanes(DF());
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto load = [&](size_t r) {
      return Four{Load<kFrom>(from[r], i), Load<kFrom>(from[r], i + lanes),
                  Load<kFrom>(from[r], i + 2 * lanes), Load<kFrom>(from[r], i + 3 * lanes)};
    };
    const Four sum = TreeSum<Four>(load, 0, count);
    StorePair<kTo>(Scaled(sum.a, scale), Scaled(sum.b, scale), to, i, false);
    StorePair<kTo>(Scaled(sum.c, scale), Scaled(sum.d, scale), to, i + 2 * lanes, false);
  }
  for (; i + lanes <= n; i += lanes) {
    const auto load = [&](size_t r) { return Load<kFrom>(from[r], i); };
    Store<kTo>(Scaled(TreeSum<VF>(load, 0, count), scale), to, i);
  }
  if (i < n) SumRest<kFrom, kTo>(from, count, scale, to, i, n - i);
}

using SumFunction = void (*)(const void* const*, size_t, float, void*, size_t);

void SumAll(const void* const* from, size_t count, FloatType from_type, float scale, void* to,
            FloatType to_type, size_t n) {
  using enum FloatType;
  static constexpr SumFunction kTable[3][3] = {
      {SumOf<kF32, kF32>, SumOf<kF32, kBf16>, SumOf<kF32, kF16>},
      {SumOf<kBf16, kF32>, SumOf<kBf16, kBf16>, SumOf<kBf16, kF16>},
      {SumOf<kF16, kF32>, SumOf<kF16, kBf16>, SumOf<kF16, kF16>}};
  kTable[static_cast<size_t>(from_type)][static_cast<size_t>(to_type)](from, count, scale, to, n);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(SumAll);

void OrderedSum(std::span<const void* const> from, FloatType from_type, float scale, void* to,
                FloatType to_type, size_t n) {
  SLUICE_CHECK(!from.empty());
  const ScopedFlushDenormals flush;
  HWY_DYNAMIC_DISPATCH(SumAll)(from.data(), from.size(), from_type, scale, to, to_type, n);
}

void OrderedSumOn(void* stream, const Addends& from, FloatType type, float scale, void* to,
                  size_t n) {
  if (stream != nullptr) return cuda::OrderedSum(from, type, scale, to, n, stream);
  absl::InlinedVector<const void*, 64> pointers;
  for (uint32_t r = 0; r < from.ranks; ++r) pointers.push_back(from.of(r));
  OrderedSum(pointers, type, scale, to, type, n);
}

}  // namespace sluice
#endif  // HWY_ONCE
