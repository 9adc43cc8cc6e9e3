// How a runtime's drives are cut into files.

#include <algorithm>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "offload/run/factory.h"

namespace sluice {

namespace {

// Segments are few, since each takes a descriptor, and not smaller than this.
constexpr int64_t kSegmentsWanted = 128;
constexpr Bytes kSegmentBytesMin = GiB(1);

}  // namespace

absl::StatusOr<std::vector<Drive>> DrivesOf(const RuntimeConfig& config) {
  const size_t count = config.nvme_paths.size();
  if (!config.nvme_rates.empty() && config.nvme_rates.size() != count) {
    return absl::InvalidArgumentError(
        fmt::format("{} rates are given for {} NVMe paths: give one for each, or none",
                    config.nvme_rates.size(), count));
  }
  std::vector<Drive> drives;
  for (const std::string& path : config.nvme_paths) drives.push_back({.path = path});
  for (size_t d = 0; d < config.nvme_rates.size(); ++d) drives[d].rate = config.nvme_rates[d];
  SLUICE_RETURN_IF_ERROR(CheckRates(drives));
  return drives;
}

SegmentTable SegmentsOf(const Plan& plan, std::span<const Drive> drives) {
  const BlockMap blocks = MapBlocks(plan.layout, plan.placement);
  const Bytes alignment = plan.placement.io_alignment;
  Bytes largest, sum;
  for (const BlockShape& block : blocks.shapes) {
    largest = std::max(largest, RoundUp(block.size, alignment));
    sum += RoundUp(block.size, alignment);
  }
  const Bytes wanted = std::max(kSegmentBytesMin, RoundUp(sum / kSegmentsWanted, alignment));
  const Bytes segment = std::max(largest, std::min(wanted, FileBytesMax()));
  return PlanSegments(blocks.shapes, drives, {.segment_bytes = segment, .alignment = alignment});
}

}  // namespace sluice
