// offload/sim/many_ranks.h
//
// Training of many ranks in one virtual time: a whole runtime for each rank, with its control loop,
// its agreement with the others, its gradients' exchange and gathers, its drives and its workers;
// over simulated hosts whose rates are given. What is simulated is what the seams hide: how long
// a transfer, a task, an operation among ranks and the program's compute take. What is decided when
// is the runtime's own code.
//
// A model may be scaled down: for each element that is there `scale` are meant, in everything that
// takes time in proportion to its size. Messages of agreement and delays are not scaled.
//
// With many hosts, one may stand for all (comm/sim_mirror.h).
//
// Threads: one. For simulations; not linked into the library.

#ifndef SLUICE_OFFLOAD_SIM_MANY_RANKS_H_
#define SLUICE_OFFLOAD_SIM_MANY_RANKS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/sim_ranks.h"
#include "core/sim_executor.h"
#include "offload/plan/floor.h"
#include "offload/run/factory.h"
#include "offload/sim/training_script.h"

namespace sluice {

struct SimHosts {
  uint32_t ranks = 1;
  bool mirrored = false;  // the first host stands for all
  SimNetworkOptions network{.moves_data = true, .small = KiB(64)};
  int workers = 1;  // of a rank
  int cores = 0;    // of a host, that workers share; 0: as many as workers
  bool callers_help = false;
  SimWork work;                         // of a worker; its scale is set here
  double drive_bytes_per_second = 0;    // of a rank's share of the drives
  double link_bytes_per_second = 16e9;  // of each rank; as simulated, whatever `scale`
  Nanos drive_latency = std::chrono::microseconds(100);
  Nanos wake = std::chrono::microseconds(20);  // until a thread that was woken runs
  bool program_wakes_at_once = false;          // what it does then takes as much longer
  double scale = 1;
  uint64_t seed = 1;
  bool jitter = false;  // tasks take from 50 % to 400 % of their time
  // Says otherwise where things live, and how many buffers there are (see SumUp).
  std::function<void(const ModelLayout&, Placement*)> place;
  std::function<void(const OffloadRuntime&)> at_end;  // is shown rank 0's when its program is over
};

// What a rank does with its runtime, of which nothing is owned.
using SimProgram = std::function<Script(OffloadRuntime*, ScriptHost*, TrainingTimes*)>;

struct SimTraining {
  std::vector<TrainingTimes> times;  // by rank that was simulated
  StepTraffic traffic;               // of rank 0; not scaled
  Bytes sent;                        // by rank 0, in a step; not scaled
  uint64_t digest = 0;               // of all that happened, and when
  double real_seconds = 0;           // that the simulation took
  double control_seconds = 0;        // of these, in rank 0's control loop, since the first step

  // The mean of the steps after the first `skipped`, of rank 0.
  double StepSeconds(size_t skipped = 2) const;
  double WaitedSeconds(size_t skipped = 2) const;
};

// `config.sharding.rank` and `ranks` are set here. Errors: those of the runtimes and the script;
// DeadlineExceeded if nothing happens any more, or after a day of virtual time.
absl::StatusOr<SimTraining> SimulateTraining(const ModelSpec& spec, const RuntimeConfig& config,
                                             const SimHosts& hosts, const TrainingScript& script);
absl::StatusOr<SimTraining> SimulatePrograms(const ModelSpec& spec, const RuntimeConfig& config,
                                             const SimHosts& hosts, const SimProgram& program);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_MANY_RANKS_H_
