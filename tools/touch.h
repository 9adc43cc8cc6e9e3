// tools/touch.h
//
// What an update with 16-bit gradients and parameters reads and writes, 14 bytes an element each,
// and nothing else: one addition an element and stream. The limit that an update's figures are
// compared with, in the ways in which a loop can be written; the best of them counts.

#ifndef SLUICE_TOOLS_TOUCH_H_
#define SLUICE_TOOLS_TOUCH_H_

#include <cstdint>
#include <span>

namespace sluice {

enum class TouchWay : uint8_t {
  kPlain,
  kParamsPast,  // the parameters are written past the caches
  kAllPast,     // so are the states
  kPrefetched,  // the states are asked for ahead
  kPrefetchedParamsPast
};
inline constexpr TouchWay kTouchWays[] = {TouchWay::kPlain, TouchWay::kParamsPast,
                                          TouchWay::kAllPast, TouchWay::kPrefetched,
                                          TouchWay::kPrefetchedParamsPast};
const char* Name(TouchWay way);

// `states` are three arrays of as many elements as `grads` has, a multiple of 32; all aligned to 64
// bytes.
void Touch(TouchWay way, std::span<float> states, std::span<const uint16_t> grads,
           uint16_t* params);

}  // namespace sluice

#endif  // SLUICE_TOOLS_TOUCH_H_
