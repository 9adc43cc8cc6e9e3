// core/clock.h
//
// Time as a seam: everything that waits or measures asks a Clock, so that a whole runtime can run
// in virtual time. A TimePoint counts nanoseconds from an epoch of the clock's own; points of
// different clocks don't compare. Thread-safe, allocates nothing.

#ifndef SLUICE_CORE_CLOCK_H_
#define SLUICE_CORE_CLOCK_H_

#include <chrono>
#include <limits>

namespace sluice {

using Nanos = std::chrono::nanoseconds;
using TimePoint = std::chrono::nanoseconds;
using Deadline = TimePoint;

inline constexpr Deadline kNoWait = Deadline::min();   // has always passed
inline constexpr Deadline kForever = Deadline::max();  // never passes

constexpr double Seconds(Nanos t) { return std::chrono::duration<double>(t).count(); }

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;  // never goes back
};

// std::chrono::steady_clock.
class SteadyClock final : public Clock {
 public:
  TimePoint Now() const override;
};

}  // namespace sluice

#endif  // SLUICE_CORE_CLOCK_H_
