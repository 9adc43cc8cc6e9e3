#include "tools/touch.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/touch.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kAheadBytes = 1024;

template <bool kPast, typename T>
HWY_INLINE void Add(const T* from, T* to) {
  const hn::ScalableTag<T> d;
  const auto sum = hn::Add(hn::Load(d, from), hn::Set(d, T{1}));
  if constexpr (kPast) {
    hn::Stream(sum, d, to);
  } else {
    hn::Store(sum, d, to);
  }
}

template <bool kParamsPast, bool kStatesPast, bool kAhead>
void Walk(std::span<float> states, std::span<const uint16_t> grads, uint16_t* params) {
  const size_t n = grads.size();
  const size_t lanes = hn::Lanes(hn::ScalableTag<float>());
  const size_t pair = hn::Lanes(hn::ScalableTag<uint16_t>());
  for (size_t i = 0; i < n; i += pair) {
    for (float* part = states.data() + i; part < states.data() + 3 * n; part += n) {
      for (size_t j = 0; j < pair; j += lanes) {
        if constexpr (kAhead) __builtin_prefetch(part + j + kAheadBytes / sizeof(float), 1);
        Add<kStatesPast>(part + j, part + j);
      }
    }
    Add<kParamsPast>(grads.data() + i, params + i);
  }
  if (kParamsPast) hwy::FlushStream();
}

void TouchAny(TouchWay way, std::span<float> states, std::span<const uint16_t> grads,
              uint16_t* params) {
  switch (way) {
    case TouchWay::kPlain:
      return Walk<false, false, false>(states, grads, params);
    case TouchWay::kParamsPast:
      return Walk<true, false, false>(states, grads, params);
    case TouchWay::kAllPast:
      return Walk<true, true, false>(states, grads, params);
    case TouchWay::kPrefetched:
      return Walk<false, false, true>(states, grads, params);
    case TouchWay::kPrefetchedParamsPast:
      return Walk<true, false, true>(states, grads, params);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(TouchAny);

void Touch(TouchWay way, std::span<float> states, std::span<const uint16_t> grads,
           uint16_t* params) {
  HWY_DYNAMIC_DISPATCH(TouchAny)(way, states, grads, params);
}

const char* Name(TouchWay way) {
  switch (way) {
    case TouchWay::kPlain:
      return "plain";
    case TouchWay::kParamsPast:
      return "parameters past the caches";
    case TouchWay::kAllPast:
      return "all past the caches";
    case TouchWay::kPrefetched:
      return "prefetched";
    case TouchWay::kPrefetchedParamsPast:
      return "prefetched, parameters past the caches";
  }
  return "";
}

}  // namespace sluice
#endif  // HWY_ONCE
