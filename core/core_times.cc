#include "core/core_times.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>

namespace sluice {

namespace {

// The number at the start of `*text`, after blanks; what follows is left there.
std::optional<int64_t> TakeNumber(std::string_view* text) {
  text->remove_prefix(std::min(text->size(), text->find_first_not_of(' ')));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc()) return std::nullopt;
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  return value;
}

Nanos TimeOf(const timeval& time) {
  return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
}

}  // namespace

std::optional<Nanos> BusyTime(std::string_view stat, std::span<const int> cores) {
  // user nice system idle iowait irq softirq steal; what guests ran is in user and nice already.
  constexpr int kColumns = 8, kIdle = 3, kIoWait = 4;
  const int64_t tick = 1'000'000'000 / std::max<int64_t>(1, sysconf(_SC_CLK_TCK));
  const int64_t most = std::numeric_limits<int64_t>::max() / tick;
  int64_t ticks = 0;
  size_t found = 0;
  while (!stat.empty()) {
    std::string_view line = stat.substr(0, stat.find('\n'));
    stat.remove_prefix(std::min(stat.size(), line.size() + 1));
    if (!line.starts_with("cpu")) break;  // these lines come first
    line.remove_prefix(3);
    if (line.starts_with(' ')) continue;  // of all cores
    const std::optional<int64_t> core = TakeNumber(&line);
    if (!core || std::ranges::find(cores, *core) == cores.end()) continue;
    for (int column = 0; column < kColumns; ++column) {
      const std::optional<int64_t> time = TakeNumber(&line);
      if (!time) return std::nullopt;
      if (column == kIdle || column == kIoWait) continue;
      if (*time < 0 || *time > most - ticks) return std::nullopt;
      ticks += *time;
    }
    ++found;
  }
  if (found < cores.size()) return std::nullopt;
  return Nanos(ticks * tick);
}

std::optional<CoreTimes> ReadCoreTimes(const FileReader& read, std::span<const int> cores) {
  const absl::StatusOr<std::string> stat = read("/proc/stat");
  rusage usage{};
  if (!stat.ok() || cores.empty() || getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  const std::optional<Nanos> busy = BusyTime(*stat, cores);
  if (!busy) return std::nullopt;
  return CoreTimes{.own = TimeOf(usage.ru_utime) + TimeOf(usage.ru_stime), .busy = *busy};
}

}  // namespace sluice
