// bench/scale_validate.h
//
// Real runs on this machine, and the same in simulation with the rates that were measured beside
// them: whether the simulation can be believed.

#ifndef SLUICE_BENCH_SCALE_VALIDATE_H_
#define SLUICE_BENCH_SCALE_VALIDATE_H_

#include <string>
#include <vector>

#include "bench/scale_real.h"

namespace sluice {

struct ValidationCase {
  std::string name;
  uint32_t ranks = 1;
  int stage = 0;
  Tier states = Tier::kPinned;
  Tier params = Tier::kHbm;
  int64_t elements = 4'000'000;  // of each of 8 units
  double forward_ms = 5;         // of a unit
  double backward_ms = 10;
  bool overlap = true;
};
std::vector<ValidationCase> ValidationCases();

// What was measured of each case, and of the machine meanwhile.
struct Validation {
  struct Row {
    ValidationCase of;
    std::vector<double> steps;   // seconds, of all real runs
    std::vector<double> drives;  // bytes a second, before and after each
    std::vector<double> single;  // likewise, one block at a time
    double simulated = 0;        // a step, with the medians of the rates
    double real() const;         // the median
    double drive() const;
  };
  std::vector<Row> rows;
  std::vector<MeasuredRates> rates;
  MeasuredRates median;
};
// `repetitions` runs of each, in turn, of some steps; then one simulation of each. `directory` is
// where drives' files go.
absl::StatusOr<Validation> Validate(const std::string& directory, int repetitions, int steps);

}  // namespace sluice

#endif  // SLUICE_BENCH_SCALE_VALIDATE_H_
