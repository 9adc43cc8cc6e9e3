// core/executor.h
//
// An Executor runs short pieces of arithmetic on worker threads. It knows nothing of what they
// compute.
//
// A thread that waits for what comes of tasks lends itself meanwhile (HelpUntil): so its core is
// not idle, and what it waits for does not wait for another.
//
// Threads: Submit may be called from any thread, also from a running task. Tasks run in no promised
// order, but the earliest submitted is started first. Memory: the caller owns a Task from Submit
// until its Run has returned, or, if Run posts an event as its last act, until then; nothing is
// allocated per task by the executors here.
//
// Whoever runs a task flushes subnormals to zero meanwhile (FTZ and DAZ): see docs/architecture.md,
// "Bits".

#ifndef SLUICE_CORE_EXECUTOR_H_
#define SLUICE_CORE_EXECUTOR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/intrusive_list.h"

namespace sluice {

// What a task is, for the simulated executor, which charges for it in virtual time.
enum class TaskKind : uint8_t {
  kOther,   // nanoseconds
  kUpdate,  // elements that are updated
  kStream,  // likewise, of states that were read from a drive and are checked and sealed
  kCopy,    // bytes that are copied or added
  kSum,     // values that are added up over ranks: elements of the result, times ranks
  kTake,    // elements of a gradient that are taken to where it lives, and squared for the norm
  kCheck,   // bytes that came from a drive
};
inline constexpr int kTaskKindCount = 7;
struct TaskCost {
  TaskKind kind = TaskKind::kOther;
  int64_t amount = 1000;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual void Run() = 0;  // on a worker, or who helps; must not block or throw

  virtual TaskCost cost() const { return {}; }  // the real executors ignore it

 private:
  friend class IntrusiveList<Task>;
  Task* next_ = nullptr;
};

class Executor {
 public:
  virtual ~Executor() = default;  // waits for the tasks submitted
  virtual void Submit(Task* task) = 0;
  // Runs tasks in the calling thread, and sleeps while there are none, until `done()` or for
  // `timeout` and what a task takes. `done` is asked again after WakeHelpers and after each task;
  // it must not use the executor.
  virtual void HelpUntil(absl::FunctionRef<bool()> done, std::chrono::milliseconds timeout) = 0;
  virtual void WakeHelpers() = 0;
  virtual int concurrency() const = 0;  // workers
  virtual size_t pending() const = 0;   // tasks submitted and not yet ended
  // Forgets the tasks that no worker has begun: they are not run, and not pending any more.
  virtual void Abandon() = 0;
  virtual std::string description() const = 0;  // for `sluice doctor`
};

// `workers` >= 1 threads, also in a child of fork. Errors: InvalidArgument for workers < 1,
// ResourceExhausted if threads can't be started.
absl::StatusOr<std::unique_ptr<Executor>> MakeExecutor(int workers);

// Sets FTZ and DAZ on the calling thread, rounding to nearest and no traps, for the life of the
// object; then restores what was there.
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals();
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  unsigned saved_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_EXECUTOR_H_
