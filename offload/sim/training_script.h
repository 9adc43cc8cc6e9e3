// offload/sim/training_script.h
//
// What a rank's program does, the same in real and in virtual time: it loads values, then trains
// for some steps: forward over all units, backward over them in the other order, giving the
// gradients of each, and a step. How it waits is its host's: a real one sleeps, and a simulated one
// lets the world go on, for which the script is a coroutine. "Compute" takes its time and no core,
// as on a GPU.
//
// Threads: one, the caller's.

#ifndef SLUICE_OFFLOAD_SIM_TRAINING_SCRIPT_H_
#define SLUICE_OFFLOAD_SIM_TRAINING_SCRIPT_H_

#include <coroutine>
#include <cstddef>
#include <exception>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/clock.h"
#include "offload/run/runtime.h"

namespace sluice {

// A coroutine that begins when it is resumed, and ends with a status.
class Script {
 public:
  struct promise_type {
    absl::Status status;
    Script get_return_object() { return Script(Handle::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_value(absl::Status result) { status = std::move(result); }
    void unhandled_exception() { std::terminate(); }  // nothing here throws
  };

  Script(Script&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Script& operator=(Script&&) = delete;
  ~Script() {
    if (handle_) handle_.destroy();
  }

  void Resume() { handle_.resume(); }
  bool done() const { return handle_.done(); }
  const absl::Status& status() const { return handle_.promise().status; }

 private:
  using Handle = std::coroutine_handle<promise_type>;
  explicit Script(Handle handle) : handle_(handle) {}
  Handle handle_;
};

// Where a script runs.
class ScriptHost {
 public:
  virtual ~ScriptHost() = default;
  virtual TimePoint Now() const = 0;
  // Waits for the ticket or for so long, and returns true; or returns false, and the script is
  // resumed when it is over.
  virtual bool AwaitTicket(Ticket ticket) = 0;
  virtual bool AwaitTime(Nanos time) = 0;
  virtual absl::Status TakeStatus() = 0;  // of the ticket
};

// What a script waits for: co_await TicketDone{host, ticket} is the ticket's status.
struct TicketDone {
  ScriptHost* host;
  Ticket ticket;
  bool await_ready() const { return host->AwaitTicket(ticket); }
  void await_suspend(std::coroutine_handle<>) const {}
  absl::Status await_resume() const { return host->TakeStatus(); }
};
struct TimePassed {
  ScriptHost* host;
  Nanos time;
  bool await_ready() const { return time <= Nanos(0) || host->AwaitTime(time); }
  void await_suspend(std::coroutine_handle<>) const {}
  void await_resume() const {}
};

// Small numbers, the same for all ranks: a gradient of the tensor, and its first values.
GivenGradient GradientOfNumbers(const ModelLayout& layout, TensorIndex t);
ValueRequest LoadOfNumbers(const ModelLayout& layout, TensorIndex t);

struct TrainingScript {
  int steps = 4;
  Nanos forward{0};  // compute of a unit
  Nanos backward{0};
  int micro_steps = 1;
  uint32_t gradients_ahead = 2;  // so many units' gradients may be on their way
  double clip_norm = 1;
};

// What one rank's script has seen.
struct TrainingTimes {
  TimePoint begin{0};            // of the first step
  std::vector<TimePoint> steps;  // when each step's call was over
  TimePoint drained{0};          // when the last update was
  std::vector<Nanos> waited;     // in each step, for units and for the step itself
};

// `runtime`, `host` and `times` are not owned and outlive the script.
Script Train(OffloadRuntime* runtime, TrainingScript script, ScriptHost* host,
             TrainingTimes* times);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SIM_TRAINING_SCRIPT_H_
