// bench/scale_real.h
//
// The same programs (offload/sim/training_script.h) over real seams, ranks being threads of this
// process, and what this machine's rates are, measured by loops that know no schedule.

#ifndef SLUICE_BENCH_SCALE_REAL_H_
#define SLUICE_BENCH_SCALE_REAL_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "offload/sim/many_ranks.h"

namespace sluice {

// A thread's, with as many threads at a time as the machine has cores.
struct MeasuredRates {
  double update = 0;    // elements a second: AdamW from memory
  double stream = 0;    // likewise, with the sums that check and seal
  double copy = 0;      // bytes
  double sum = 0;       // values added up over ranks
  double take = 0;      // elements copied and squared
  double exchange = 0;  // bytes that each rank copies of the others' memory
  double round = 0;     // not a rate: seconds of a small operation between two threads
};
// Of the cores and memory.
MeasuredRates MeasureCores(int threads);
// Of the drive that holds `directory`, by an I/O engine alone: blocks of so many bytes, anywhere,
// reads and writes in turn, `depth` at a time. Bytes a second. Errors: those of its files.
absl::StatusOr<double> MeasureDrive(const std::string& directory, Bytes block, uint32_t depth,
                                    double seconds);

// Trains; the times are by rank.
absl::StatusOr<std::vector<TrainingTimes>> TrainReally(const ModelSpec& spec,
                                                       const RuntimeConfig& config, uint32_t ranks,
                                                       const TrainingScript& script);

}  // namespace sluice

#endif  // SLUICE_BENCH_SCALE_REAL_H_
