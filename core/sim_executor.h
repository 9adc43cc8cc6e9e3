// core/sim_executor.h
//
// Workers in virtual time: a task starts when one of them is free, and Run is called when what it
// costs has passed. Executors of one simulated host may share its cores. For tests and simulations;
// not linked into the library.
//
// Threads: one. Allocates freely.

#ifndef SLUICE_CORE_SIM_EXECUTOR_H_
#define SLUICE_CORE_SIM_EXECUTOR_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/executor.h"
#include "core/sim_world.h"

namespace sluice {

// Cores of a host that has no more of them than its executors have workers.
class SimCores {
 public:
  explicit SimCores(int cores) : free_(cores) {}

  bool TryTake() { return free_ > 0 && free_-- > 0; }
  // `start` is called when a core is given back: it takes it, or not.
  void WhenFree(std::function<void()> start) { waiting_.push_back(std::move(start)); }
  void Give();

 private:
  int free_;
  std::vector<std::function<void()>> waiting_;
};

// How long tasks take.
struct SimWork {
  // Amounts of each kind of work (TaskKind) that a worker does in a second.
  std::array<double, kTaskKindCount> per_second = {1e9, 2e9, 2e9, 8e9, 4e9, 4e9, 20e9};
  double scale = 1;           // for each that is there, so many are meant; of kOther one
  Nanos start{300};           // of any task, before it does anything
  uint64_t percent_min = 50;  // each takes a share of its time that is drawn between these
  uint64_t percent_max = 400;
  std::shared_ptr<SimCores> cores;  // shared with other executors; null: as many as workers
};

class SimExecutor : public Executor {
 public:
  // So many callers that wait help, as workers of their own.
  virtual void SetHelpers(int helpers) = 0;
};

// The destructor lets the world go on until all tasks have run.
std::unique_ptr<SimExecutor> MakeSimExecutor(SimWorld* world, int workers, SimWork work = {});

}  // namespace sluice

#endif  // SLUICE_CORE_SIM_EXECUTOR_H_
