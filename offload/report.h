// offload/report.h
//
// What people and tools are told, as JSON: placements, a runtime's state, the machine. Keys are
// listed in docs/api.md.

#ifndef SLUICE_OFFLOAD_REPORT_H_
#define SLUICE_OFFLOAD_REPORT_H_

#include <string>

#include "core/device_choice.h"
#include "offload/floor.h"
#include "offload/placement.h"

namespace sluice {

// What one step moves under `placement`, when every tensor has a gradient.
StepTraffic TrafficOf(const ModelLayout& layout, const Placement& placement,
                      const PlacementOptions& options);

std::string PlacementJson(const ModelLayout& layout, const DeviceChoice& device,
                          const Placement& placement, const Budgets& budgets,
                          const PlacementOptions& options);

// The machine as Sluice sees it, with advice; `path` (may be empty) is a directory that could hold
// swap files.
std::string DoctorJson(const std::string& path);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_REPORT_H_
