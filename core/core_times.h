// core/core_times.h
//
// How busy the cores are that this process may use, and how much of that is its own doing: so one
// can tell whether others want them. The kernel counts, for each core in ticks of some
// milliseconds, so that less than tenths of a second say little.
//
// Pure reading of /proc and of rusage; any thread.

#ifndef SLUICE_CORE_CORE_TIMES_H_
#define SLUICE_CORE_CORE_TIMES_H_

#include <optional>
#include <span>
#include <string_view>

#include "core/cgroup.h"
#include "core/clock.h"

namespace sluice {

struct CoreTimes {
  Nanos own{};   // that threads of this process ran, those that have ended too
  Nanos busy{};  // that the cores did anything, for anybody
};

// The time that `cores` were not idle, of the text of /proc/stat; nothing if it lacks one of them.
std::optional<Nanos> BusyTime(std::string_view stat, std::span<const int> cores);

// Nothing if the kernel doesn't say.
std::optional<CoreTimes> ReadCoreTimes(const FileReader& read, std::span<const int> cores);

}  // namespace sluice

#endif  // SLUICE_CORE_CORE_TIMES_H_
