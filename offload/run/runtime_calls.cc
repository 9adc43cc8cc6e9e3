// What any thread may call of a runtime. Nearly all of it is handed to the control thread, in
// order.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/runtime.h"

namespace sluice {

size_t OffloadRuntime::Put(Command command) {
  if (command.turn != TurnKind::kNone) ++turns_called_;
  const std::lock_guard lock(mutex_);
  commands_.push_back(std::move(command));
  return ++calls_;
}

void OffloadRuntime::Announce() {
  {
    const std::lock_guard lock(mutex_);
    if (commands_.empty() || std::exchange(announced_, true)) return;
  }
  inbox_.Post(&commands_arrived_);
}

void OffloadRuntime::Send(Command command) {
  Put(std::move(command));
  Announce();
}

// Either this sees that calls are heeded, or the control thread, before it sleeps, that there is
// one.
void OffloadRuntime::SendQuietly(Command command) {
  if (Put(std::move(command)) >= kQuietMax || heeds_calls_) Announce();
}

Ticket OffloadRuntime::Acquire(UnitIndex unit, CallerStream stream) {
  const absl::Status usable = seams_.device->CheckStream(stream);
  if (usable.ok() && turns_called_ == 0 && residency_->Enter(unit, stream)) {
    SendQuietly({.run = &OffloadRuntime::RunEntered, .unit = unit});
    return tickets_.MakeDone();
  }
  const Ticket ticket = tickets_.Make();
  if (!usable.ok()) {
    tickets_.Complete(ticket, usable);
    return ticket;
  }
  Send({.run = &OffloadRuntime::RunAcquire, .unit = unit, .ticket = ticket, .stream = stream});
  return ticket;
}

Ticket OffloadRuntime::PushGrads(std::span<const GivenGradient> given, CallerStream stream) {
  const Ticket ticket = tickets_.Make();
  absl::StatusOr<Fence> fence = seams_.device->RecordFence(stream);
  if (!fence.ok()) {
    tickets_.Complete(ticket, fence.status());
    return ticket;
  }
  Command command{.run = &OffloadRuntime::RunPushGrads, .ticket = ticket};
  {
    const std::lock_guard lock(mutex_);
    if (!spare_given_.empty()) {
      command.given = std::move(spare_given_.back());
      spare_given_.pop_back();
    }
  }
  command.given.assign(given.begin(), given.end());
  command.fences.push_back(*std::move(fence));
  Send(std::move(command));
  return ticket;
}

Ticket OffloadRuntime::Step(StepRequest request) {
  if (seams_.cores.openmp_waits != nullptr) seams_.cores.openmp_waits->StepTaken();
  const Ticket ticket = tickets_.Make();
  Send({.run = &OffloadRuntime::RunTurn,
        .turn = TurnKind::kStep,
        .ticket = ticket,
        .step = std::move(request)});
  return ticket;
}

Ticket OffloadRuntime::Access(ValueRequest request) {
  const Ticket ticket = tickets_.Make();
  Send({.run = &OffloadRuntime::RunTurn,
        .turn = TurnKind::kValue,
        .ticket = ticket,
        .value = std::move(request)});
  return ticket;
}

Ticket OffloadRuntime::Drain() {
  const Ticket ticket = tickets_.Make();
  Send({.run = &OffloadRuntime::RunDrain, .ticket = ticket});
  return ticket;
}

void OffloadRuntime::BeginIteration(uint32_t key, bool boundary) {
  Send({.run = &OffloadRuntime::RunBegin, .key = key, .boundary = boundary});
}
void OffloadRuntime::EndIteration() { Send({.run = &OffloadRuntime::RunEnd}); }

absl::Status OffloadRuntime::Release(UnitIndex unit, CallerStream stream) {
  if (!residency_->views()->Shown(unit)) {
    return absl::FailedPreconditionError(fmt::format(
        "unit '{}' is not acquired: there is nothing to release", layout_.unit(unit).name));
  }
  SLUICE_ASSIGN_OR_RETURN(Fences fences, residency_->views()->RecordRelease(unit, stream));
  SendQuietly({.run = &OffloadRuntime::RunRelease, .unit = unit, .fences = std::move(fences)});
  return absl::OkStatus();
}

absl::StatusOr<DlManagedTensor*> OffloadRuntime::MakeView(UnitIndex unit) {
  if (layout_.unit(unit).lent) {
    return absl::FailedPreconditionError(fmt::format(
        "the parameters of unit '{}' are in the caller's memory: there is nothing to view",
        layout_.unit(unit).name));
  }
  return residency_->views()->MakeView(unit);
}

void OffloadRuntime::ZeroGrad() {
  Send({.run = &OffloadRuntime::RunTurn, .turn = TurnKind::kClearGrads});
}

absl::Status OffloadRuntime::ClearGrad(TensorIndex tensor) {
  SLUICE_RETURN_IF_ERROR(failure());
  SLUICE_RETURN_IF_ERROR(gradients_->CheckTakes(tensor));
  Send({.run = &OffloadRuntime::RunTurn, .turn = TurnKind::kClearGrads, .cleared = tensor});
  return absl::OkStatus();
}

std::optional<absl::Status> OffloadRuntime::Wait(Ticket ticket, std::chrono::milliseconds timeout) {
  if (seams_.threaded) return tickets_.Wait(ticket, timeout);
  const TimePoint until = seams_.clock->Now() + timeout;
  for (;;) {
    std::optional<absl::Status> result = tickets_.Wait(ticket, std::chrono::milliseconds(0));
    if (result || seams_.clock->Now() >= until) return result;
    RunOnce(std::min(until, seams_.clock->Now() + kTurn));
  }
}

StepResult OffloadRuntime::last_step() const {
  const std::lock_guard lock(mutex_);
  return last_step_;
}

int64_t OffloadRuntime::tensor_step(TensorIndex tensor) const {
  const std::lock_guard lock(mutex_);
  return tensor_steps_[tensor.value()];
}

void OffloadRuntime::set_tensor_step(TensorIndex tensor, int64_t step) {
  const std::lock_guard lock(mutex_);
  tensor_steps_[tensor.value()] = step;
}

absl::Status OffloadRuntime::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void OffloadRuntime::RecordCallerSpan(const std::string& name, TimePoint begin, TimePoint end) {
  const char* kept = nullptr;
  {
    const std::lock_guard lock(mutex_);
    kept = span_names_.insert(name).first->c_str();
  }
  trace_.Record(caller_track_, kept, -1, begin, end);
}

void OffloadRuntime::ResetCounters() {
  metrics_.Reset();
  store_->ResetCounters();
  trace_.Clear();
}

}  // namespace sluice
