// offload/run/report_figures.h
//
// The part of a report that is figures of times, as JSON: what the keys mean, report.h says.
//
// Threads: any. Not on the step path: allocates.

#ifndef SLUICE_OFFLOAD_RUN_REPORT_FIGURES_H_
#define SLUICE_OFFLOAD_RUN_REPORT_FIGURES_H_

#include <string>

#include "core/histogram.h"
#include "core/metrics.h"
#include "nlohmann/json.hpp"
#include "nvme/block_store.h"
#include "offload/run/step_times.h"

namespace sluice {

// count, p50, p99 and max.
nlohmann::ordered_json TimesObject(const Histogram& times);

// By what took the time; what drives did, of all of them together.
nlohmann::ordered_json HistogramsObject(const Metrics& metrics, const BlockStore& store);

// What steps took, and their floor.
nlohmann::ordered_json StepsObject(const StepTimes::Figures& figures);

// What was waited for, in seconds, in shares, and in words.
nlohmann::ordered_json WaitedObject(const StepTimes::Figures& figures);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_REPORT_FIGURES_H_
