#include "core/clock.h"

namespace sluice {

TimePoint SteadyClock::Now() const {
  return std::chrono::duration_cast<TimePoint>(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace sluice
