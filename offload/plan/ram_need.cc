#include "offload/plan/ram_need.h"

#include <algorithm>
#include <string>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

Bytes RamForArenas(const MemoryLimits& limits) {
  const Bytes available = limits.available();
  return std::max(Bytes(0), available - RamBeside(available) - kRamMoves);
}

absl::Status CheckRam(const RamNeed& need, const MemoryLimits& limits) {
  const Bytes most = RamForArenas(limits);
  if (need.sum() <= most + (most > Bytes(0) ? kRamMoves : Bytes(0))) return absl::OkStatus();
  std::string parts = fmt::format("{} pinned", FormatBytes(need.pinned));
  if (need.hbm > Bytes(0))
    parts += fmt::format(", {} as HBM of the host device", FormatBytes(need.hbm));
  if (need.files > Bytes(0))
    parts += fmt::format(", {} of swap files on a file system in RAM", FormatBytes(need.files));
  std::string advice;
  if (need.files > Bytes(0)) {
    advice = "; give an nvme_path on a drive";
  } else if (need.hbm < most) {
    advice = fmt::format("; with this hbm budget, the largest pinned budget that would do is {}",
                         (most - need.hbm).value());
  } else {
    advice = "; lower the hbm budget first";
  }
  return absl::ResourceExhaustedError(fmt::format(
      "{} of RAM are needed ({}), but {}: the largest sum that would do is {} ({} bytes){}",
      FormatBytes(need.sum()), parts, limits.reason(), FormatBytes(most), most.value(), advice));
}

absl::Status CheckRamIfKnown(const RamNeed& need, const absl::StatusOr<MemoryLimits>& limits,
                             std::string* unchecked) {
  if (limits.ok()) return CheckRam(need, *limits);
  *unchecked = fmt::format("RAM was not checked: {}", Message(limits.status()));
  return absl::OkStatus();
}

}  // namespace sluice
