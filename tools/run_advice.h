// tools/run_advice.h
//
// What to change, from the figures of a run, and what that would bring by the same figures. Pure.

#ifndef SLUICE_TOOLS_RUN_ADVICE_H_
#define SLUICE_TOOLS_RUN_ADVICE_H_

#include <optional>
#include <string>
#include <vector>

#include "tools/run_report.h"

namespace sluice::tools {

struct Advice {
  std::string what;  // to do, or what is so
  std::string why;   // the figures
};

// The two parts of a floor, of each of which the longest term counts (offload/plan/floor.h).
struct FloorParts {
  struct Term {
    std::string name;
    double seconds = 0;
    std::string sum;  // what it is the sum of, if of several
  };
  std::vector<Term> backward;  // beside each other, while backward runs
  std::vector<Term> forward;
  double total = 0;
};
// Nothing without rates.
std::optional<FloorParts> PartsOf(const RunReport& report);

// What helps most comes first. Empty: nothing is known that would.
std::vector<Advice> AdviceFor(const RunReport& report);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_ADVICE_H_
