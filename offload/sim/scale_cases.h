// offload/sim/scale_cases.h
//
// Machines whose rates were published, models on them, and what a step of one takes in simulation,
// beside its floor. Rates are per GPU unless they say otherwise.

#ifndef SLUICE_OFFLOAD_SIM_SCALE_CASES_H_
#define SLUICE_OFFLOAD_SIM_SCALE_CASES_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "offload/plan/floor.h"
#include "offload/sim/many_ranks.h"

namespace sluice {

struct Machine {
  std::string name;
  uint32_t ranks_per_host = 8;
  double flops = 0;                   // that a model gets of a GPU
  double hbm_bytes_per_second = 0;    // where staged gradients are copied and added up
  double link_bytes_per_second = 0;   // to RAM
  double local_bytes_per_second = 0;  // among the GPUs of a host, each direction
  double network_bytes_per_second = 0;
  double drive_bytes_per_second = 0;   // of a host, reads and writes together
  double memory_bytes_per_second = 0;  // of a host's RAM, for updates
  Nanos local_latency = std::chrono::microseconds(5);
  Nanos network_latency = std::chrono::microseconds(10);
  Nanos message_gap = Nanos(500);
};
Machine Dgx2();     // 16 V100, as ZeRO-Infinity had them
Machine DgxA100();  // 8 A100, 8 x 200 Gb/s
Machine DgxH100();  // 8 H100, 8 x 400 Gb/s
const Machine* FindMachine(const std::string& name);

struct ScaleCase {
  Machine machine;
  uint32_t hosts = 1;
  bool mirrored = true;  // one host stands for all; else all ranks are simulated
  int stage = 1;
  Tier states = Tier::kPinned;  // kHbm: updated there, at its rate
  Tier params = Tier::kHbm;     // of stage 3: where shards live
  double parameters = 7e9;
  uint32_t units = 32;
  double tokens = 4096;  // a rank and step
  bool recompute = true;
  int micro_steps = 1;
  int cells_of_shard = 0;    // as the model is scaled down to; 0: chosen
  uint32_t cache_units = 6;  // of stage 3: that HBM has room for
  int steps = 5;
  bool overlap = true;
  bool free_network = false;  // operations among ranks take no time
  bool ring = false;
  uint64_t seed = 1;

  uint32_t ranks() const { return hosts * machine.ranks_per_host; }
};

struct ScaleResult {
  double step = 0;  // seconds
  FloorTerms floor;
  double waited = 0;  // of a step, for units, gradients and the step
  double scale = 0;
  Bytes sent;  // a rank and step, as meant
  SimTraining training;

  double ratio() const { return step / floor.total; }
};
absl::StatusOr<ScaleResult> Simulate(const ScaleCase& c);

// Of a rank's links, for an all-to-all and for an all-gather of so many bytes in all.
double ExchangeSeconds(const Machine& machine, uint32_t ranks, double bytes);
double GatherSeconds(const Machine& machine, uint32_t ranks, double bytes);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_SCALE_CASES_H_
