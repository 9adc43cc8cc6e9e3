// core/checksum-inl.h
//
// The sums of checksum.h as vector code, for a loop that has the words in registers. Included once
// for each vector target, after highway.h.

#if defined(SLUICE_CORE_CHECKSUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_CORE_CHECKSUM_INL_H_
#undef SLUICE_CORE_CHECKSUM_INL_H_
#else
#define SLUICE_CORE_CHECKSUM_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/checksum.h"
#include "hwy/highway.h"

// Whether this target has VectorSums.
#undef SLUICE_VECTOR_SUMS
#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
#define SLUICE_VECTOR_SUMS 0
#else
#define SLUICE_VECTOR_SUMS 1
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {

#if SLUICE_VECTOR_SUMS

inline constexpr hwy::HWY_NAMESPACE::CappedTag<uint64_t, kStripeWords> kSumTag{};
using SumVector = hwy::HWY_NAMESPACE::Vec<decltype(kSumTag)>;
inline constexpr size_t kSumLanes = hwy::HWY_NAMESPACE::MaxLanes(kSumTag);
inline constexpr size_t kSumParts = kStripeWords / kSumLanes;  // of half a stripe, in vectors

// The keys of one part of a stripe.
struct KeyPair {
  SumVector first;
  SumVector second;
};
HWY_INLINE KeyPair KeysOf(size_t stripe, size_t part) {
  const size_t at = 2 * stripe + part * kSumLanes;
  return {hwy::HWY_NAMESPACE::LoadU(kSumTag, kStripeKeys.first.data() + at),
          hwy::HWY_NAMESPACE::LoadU(kSumTag, kStripeKeys.second.data() + at)};
}

// StripeSums in registers.
class VectorSums {
 public:
  HWY_INLINE VectorSums() {
    for (SumVector& sum : sums_) sum = hwy::HWY_NAMESPACE::Zero(kSumTag);
  }

  // `a` and `b` are the part's words of the stripe's halves.
  HWY_INLINE void Add(SumVector a, SumVector b, const KeyPair& keys, size_t part) {
    namespace hn = hwy::HWY_NAMESPACE;
    const SumVector x = hn::Xor(a, keys.first);
    const SumVector y = hn::Xor(b, keys.second);
    sums_[part] = hn::Xor3(sums_[part], hn::CLMulLower(x, y), hn::CLMulUpper(x, y));
  }

  HWY_INLINE void AddTo(StripeSums* sums) const {
    namespace hn = hwy::HWY_NAMESPACE;
    for (size_t part = 0; part < kSumParts; ++part) {
      uint64_t* const words = sums->words.data() + part * kSumLanes;
      hn::Store(hn::Xor(hn::Load(kSumTag, words), sums_[part]), kSumTag, words);
    }
  }

 private:
  SumVector sums_[kSumParts];
};

#endif  // SLUICE_VECTOR_SUMS

}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_CORE_CHECKSUM_INL_H_
