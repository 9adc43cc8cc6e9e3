// tools/run_page.h
//
// A run on one page of HTML that needs nothing else: no network, no script. Plain in print, light
// and dark, on a phone; what is drawn is said in words too. The page is well-formed XML, and
// everything that the report holds is in it.

#ifndef SLUICE_TOOLS_RUN_PAGE_H_
#define SLUICE_TOOLS_RUN_PAGE_H_

#include <string>

#include "tools/run_report.h"
#include "tools/run_trace.h"

namespace sluice::tools {

// `trace` may be null.
std::string RunPageHtml(const RunReport& report, const RunTrace* trace);

// The parts (run_sections.cc), each "" if the report has nothing for it.
std::string StepsHtml(const RunReport& report);
std::string WaitsHtml(const RunReport& report);
std::string FloorHtml(const RunReport& report);
std::string TiersHtml(const RunReport& report);
std::string DrivesHtml(const RunReport& report);
std::string LatenciesHtml(const RunReport& report);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_PAGE_H_
