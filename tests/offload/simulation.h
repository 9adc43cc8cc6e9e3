// tests/offload/simulation.h
//
// One training in simulation, from a seed, and what came of it: its status, its masters, its log,
// and whether everything came back in bounded virtual time.

#ifndef SLUICE_TESTS_OFFLOAD_SIMULATION_H_
#define SLUICE_TESTS_OFFLOAD_SIMULATION_H_

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "offload/sim/sim_factory.h"
#include "tests/offload/trainer.h"

namespace sluice::testing {

using Masters = std::vector<std::vector<float>>;

struct Outcome {
  absl::Status status;
  Masters masters;        // if status is ok
  std::string unsettled;  // what did not come back; empty if all did
  uint64_t faults = 0;    // that happened, at least
  std::string log;        // the world's, and the report
};

// Budgets and buffers drawn from the seed, from tight ones to everything.
inline RuntimeConfig ConfigOf(uint64_t seed) {
  SimWorld dice(seed ^ 0x5eed);
  RuntimeConfig config;
  config.types.param = FloatType::kBf16;
  config.types.grad = FloatType::kBf16;
  config.placement.resident_elements_max = dice.OneIn(2) ? 100 : 6000;
  config.placement.state_buffers = static_cast<int>(dice.Uniform(2, 12));
  config.placement.param_buffers = static_cast<int>(dice.Uniform(2, 12));
  config.placement.grad_buffers = static_cast<int>(dice.Uniform(2, 12));
  config.chunk_elements = kCellElements * static_cast<int64_t>(dice.Uniform(1, 3));
  config.budgets.hbm = KiB(static_cast<int64_t>(dice.Uniform(90, 320)));
  config.budgets.pinned = KiB(static_cast<int64_t>(dice.Uniform(640, 2200)));
  config.budgets.nvme = GiB(1);
  config.nvme_paths = {"simulated", "also simulated"};
  config.io.in_flight_max = static_cast<uint32_t>(dice.Uniform(1, 8));
  config.overlap = !dice.OneIn(8);
  config.placement.copy_bytes = KiB(int64_t{4} << dice.Uniform(0, 5));
  return config;
}

// The model of a seed, and its budgets: every second is of mixed types, which take up to twice the
// room.
struct Drawn {
  ModelSpec spec;
  RuntimeConfig config;
};
inline Drawn DrawnFrom(uint64_t seed) {
  if (seed % 2 == 0) return {OddModel(), ConfigOf(seed)};
  Drawn drawn{MixedModel(seed), ConfigOf(seed)};
  drawn.config.budgets.hbm = drawn.config.budgets.hbm * 2;
  drawn.config.budgets.pinned = drawn.config.budgets.pinned * 2;
  return drawn;
}

// The smallest budgets that `spec` can be trained in, HBM first: room for one unit beside those
// that live there, and two buffers of each kind.
inline Budgets SmallestBudgets(const ModelSpec& spec, RuntimeConfig config) {
  config.budgets = {GiB(1), GiB(1), GiB(1)};
  for (Bytes Budgets::*tier : {&Budgets::hbm, &Budgets::pinned}) {
    Bytes works = GiB(1);
    for (Bytes step = GiB(1) / 2; step >= kSlotAlignment; step = step / 2) {
      config.budgets.*tier = works - step;
      if (MakePlan(spec, config).ok()) works = works - step;
    }
    config.budgets.*tier = works;
  }
  return config.budgets;
}

// Turns the runtime's loop until everything has come back, for at most a minute of virtual time.
inline std::string Settle(SimRuntime* sim) {
  const TimePoint end = sim->world->Now() + std::chrono::minutes(1);
  while (!sim->runtime->Unsettled().empty() && sim->world->Now() < end) {
    sim->runtime->RunOnce(sim->world->Now() + std::chrono::milliseconds(20));
  }
  return sim->runtime->Unsettled();
}

// Lets what hung in an abandoned runtime end, and keeps its world, as whoever abandons one must.
inline void KeepAbandoned(SimRuntime sim) {
  static auto* const kept = new std::vector<SimRuntime>;
  while (sim.world->RunNext(kForever)) {
  }
  kept->push_back(std::move(sim));
}

// By tensor: what the last update has yet to write.
inline std::vector<int64_t> Unwritten(const OffloadRuntime& runtime) {
  std::vector<int64_t> elements;
  for (uint32_t t = 0; t < runtime.layout().tensors().size(); ++t)
    elements.push_back(runtime.tensor_unwritten(TensorIndex(t)));
  return elements;
}

// Starts one operation of each kind on a runtime that has failed; all of them must end with its
// failure. Errors: that of the first which doesn't.
inline absl::Status ExpectAllRefused(OffloadRuntime* runtime, const ModelSpec& spec,
                                     const TrainerOptions& options, Trainer* trainer) {
  std::vector<float> values(static_cast<size_t>(spec.tensors[0].elements));
  std::vector<std::byte> grad(values.size() * 4);
  const auto access = [&](bool write, Field field) {
    return runtime->Access({.write = write,
                            .tensor = TensorIndex(0),
                            .field = field,
                            .data = reinterpret_cast<std::byte*>(values.data()),
                            .type = trainer->AccessType(0),
                            .done = nullptr});
  };
  const Ticket tickets[] = {
      runtime->Acquire(UnitIndex(0)),
      runtime->PushGrad(TensorIndex(0), grad),
      runtime->Step({.groups = options.groups, .clip_norm = options.clip_norm}),
      access(false, Field::kMaster),
      access(true, Field::kGrad),
      runtime->Drain()};
  absl::Status first;
  if (runtime->ClearGrad(TensorIndex(0)) != runtime->failure())
    first = absl::InternalError("a gradient of a runtime that has failed was cleared");
  for (Ticket ticket : tickets) {
    absl::Status status = trainer->Wait(ticket);
    if (status == runtime->failure()) continue;
    if (status.ok()) status = absl::InternalError("a runtime that has failed went on");
    if (first.ok()) first = status;
  }
  return first;
}

// Trains, reads the masters, waits until everything has come back, and takes it all down. `caller`:
// as the trainer's.
inline Outcome Simulate(const ModelSpec& spec, const RuntimeConfig& config,
                        const SimOptions& sim_options, const TrainerOptions& options,
                        Caller* caller = nullptr) {
  Outcome outcome;
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, sim_options);
  if (!sim.ok()) {
    outcome.status = sim.status();
    outcome.faults = 1;  // nothing else refuses it
    return outcome;
  }
  Trainer trainer(sim->runtime.get(), spec, options, caller);
  outcome.status = trainer.Run();
  for (uint32_t t = 0; outcome.status.ok() && t < spec.tensors.size(); ++t) {
    absl::StatusOr<std::vector<float>> master = trainer.Read(t, Field::kMaster);
    outcome.status = master.status();
    if (master.ok()) outcome.masters.push_back(*std::move(master));
  }
  std::vector<int64_t> unwritten;
  if (!sim->runtime->failure().ok()) {
    const absl::Status after = ExpectAllRefused(sim->runtime.get(), spec, options, &trainer);
    if (!after.ok()) outcome.status = after;
    if (!absl::IsDeadlineExceeded(trainer.Wait(sim->runtime->Drain())))
      unwritten = Unwritten(*sim->runtime);
  } else if (!outcome.status.ok()) {
    // One call was refused, and the runtime goes on. The next iteration, not a last one, reads
    // nothing ahead.
    sim->runtime->BeginIteration(0, false);
    const absl::Status after = trainer.Read(0, Field::kMaster).status();
    if (absl::IsDeadlineExceeded(after)) outcome.status = after;
  }
  outcome.unsettled = Settle(&*sim);
  if (!unwritten.empty() && unwritten != Unwritten(*sim->runtime))
    outcome.unsettled += "parameters that were written after a drain";
  outcome.faults = sim->world->faults()->happened();
  outcome.log = sim->world->log() + sim->runtime->ReportJson();
  // While what it may still use is there.
  if (!OffloadRuntime::Close(std::move(sim->runtime)).ok()) KeepAbandoned(*std::move(sim));
  return outcome;
}

// Bit for bit (NaNs included).
inline bool SameBits(const Masters& a, const Masters& b) {
  if (a.size() != b.size()) return false;
  for (size_t t = 0; t < a.size(); ++t) {
    if (a[t].size() != b[t].size()) return false;
    if (!a[t].empty() && std::memcmp(a[t].data(), b[t].data(), a[t].size() * sizeof(float)) != 0)
      return false;
  }
  return true;
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_SIMULATION_H_
