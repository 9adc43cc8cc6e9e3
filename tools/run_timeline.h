// tools/run_timeline.h
//
// The picture of one step: what was under way when, a row for each track. Pure.

#ifndef SLUICE_TOOLS_RUN_TIMELINE_H_
#define SLUICE_TOOLS_RUN_TIMELINE_H_

#include <string>

#include "tools/run_trace.h"

namespace sluice::tools {

// From the end of one span "step" of the track "compute" to the end of the next: of all steps, the
// one that took the median time. The whole trace, if there are no two.
struct StepWindow {
  double begin_us = 0;
  double end_us = 0;
  bool is_step = false;
};
StepWindow WindowOf(const RunTrace& trace);

// HTML.
std::string TimelineHtml(const RunTrace& trace);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_TIMELINE_H_
