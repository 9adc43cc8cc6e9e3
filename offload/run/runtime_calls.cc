// What any thread may call of a runtime. Nearly all of it is handed to the control thread, in
// order.

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/runtime.h"

namespace sluice {

Ticket OffloadRuntime::Acquire(UnitIndex unit, CallerStream stream) {
  const absl::Status usable = seams_.device->CheckStream(stream);
  Calls::Place place(&calls_);
  const Ticket ticket = tickets_.Make();
  absl::Cleanup drop = [this, ticket] { tickets_.Drop(ticket); };
  if (!usable.ok()) {
    tickets_.Complete(ticket, usable);
  } else if (!calls_.turn_sent() && residency_->Enter(unit, stream)) {
    tickets_.CompleteUnseen(ticket);
    place.SendQuietly(EnteredCall{unit});
  } else {
    place.Send(AcquireCall{unit, stream, ticket});
  }
  std::move(drop).Cancel();
  record_.Called(RecordedCall::Kind::kAcquire, unit.value(), ticket);
  return ticket;
}

Ticket OffloadRuntime::PushGrads(std::span<const GivenGradient> given, CallerStream stream) {
  absl::StatusOr<Fence> fence = seams_.device->RecordFence(stream);
  std::unique_ptr<GradsCall> call = spare_grads_.Take();
  call->given.assign(given.begin(), given.end());
  Calls::Place place(&calls_);
  call->ticket = tickets_.Make();
  const Ticket ticket = call->ticket;
  if (!fence.ok()) {
    tickets_.Complete(ticket, fence.status());
    return ticket;
  }
  call->fence = *std::move(fence);
  place.Send(std::move(call));
  record_.CalledGrads(given, ticket);
  return ticket;
}

Ticket OffloadRuntime::PushGrad(TensorIndex tensor, ConstMemoryView data, CallerStream stream) {
  const GivenGradient one{.tensor = tensor, .data = data};
  return PushGrads(std::span(&one, 1), stream);
}

Ticket OffloadRuntime::SendTurn(std::unique_ptr<Turn> turn) {
  Calls::Place place(&calls_);
  const Ticket ticket = tickets_.Make();
  turn->ticket = ticket;
  place.Send(std::move(turn));
  return ticket;
}

StepRequest OffloadRuntime::BlankStep() {
  std::unique_ptr<Turn> turn = spare_turns_.Take();
  StepRequest request = std::move(turn->step);
  spare_turns_.Give(std::move(turn));
  return request;
}

Ticket OffloadRuntime::Step(StepRequest request) {
  std::unique_ptr<Turn> turn = spare_turns_.Take();
  turn->kind = Turn::Kind::kStep;
  turn->step = std::move(request);
  turn->called = seams_.clock->Now();
  const Ticket ticket = SendTurn(std::move(turn));
  record_.Called(RecordedCall::Kind::kStep, 0, ticket);
  if (seams_.cores.openmp_waits != nullptr) seams_.cores.openmp_waits->StepTaken();
  return ticket;
}

Ticket OffloadRuntime::Access(ValueRequest request) {
  std::unique_ptr<Turn> turn = spare_turns_.Take();
  turn->kind = Turn::Kind::kValue;
  turn->value = std::move(request);
  return SendTurn(std::move(turn));
}

Ticket OffloadRuntime::Drain() {
  Calls::Place place(&calls_);
  const Ticket ticket = tickets_.Make();
  place.Send(DrainCall{ticket});
  record_.Called(RecordedCall::Kind::kDrain, 0, ticket);
  return ticket;
}

void OffloadRuntime::BeginIteration(uint32_t key, bool boundary) {
  calls_.Send(BeginCall{key, boundary});
  record_.Called(RecordedCall::Kind::kBegin, 2 * int64_t{key} + (boundary ? 1 : 0));
}
void OffloadRuntime::EndIteration() {
  calls_.Send(EndCall{});
  record_.Called(RecordedCall::Kind::kEnd);
}

absl::Status OffloadRuntime::Release(UnitIndex unit, CallerStream stream) {
  if (!residency_->views()->Shown(unit)) {
    return absl::FailedPreconditionError(fmt::format(
        "unit '{}' is not acquired: there is nothing to release", layout_.unit(unit).name));
  }
  Calls::Place place(&calls_);
  SLUICE_ASSIGN_OR_RETURN(Fences fences, residency_->views()->RecordRelease(unit, stream));
  place.SendQuietly(ReleaseCall{unit, std::move(fences)});
  record_.Called(RecordedCall::Kind::kRelease, unit.value());
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

void OffloadRuntime::ZeroGrad() { ClearGrads(std::nullopt); }

absl::Status OffloadRuntime::ClearGrad(TensorIndex tensor) {
  SLUICE_RETURN_IF_ERROR(failure());
  SLUICE_RETURN_IF_ERROR(gradients_->CheckTakes(tensor));
  ClearGrads(tensor);
  return absl::OkStatus();
}

void OffloadRuntime::ClearGrads(std::optional<TensorIndex> tensor) {
  std::unique_ptr<Turn> turn = spare_turns_.Take();
  turn->kind = Turn::Kind::kClearGrads;
  turn->cleared = tensor;
  calls_.Send(std::move(turn));
}

std::optional<absl::Status> OffloadRuntime::Wait(Ticket ticket, std::chrono::milliseconds timeout) {
  CallRecord::Waiting waiting(&record_, ticket);
  const TimePoint until = seams_.clock->Now() + timeout;
  std::optional<absl::Status> result;
  if (seams_.threaded) {
    result = tickets_.Wait(ticket, timeout);
  } else {
    while (!(result = tickets_.Wait(ticket, std::chrono::milliseconds(0))) &&
           seams_.clock->Now() < until)
      RunOnce(std::min(until, seams_.clock->Now() + kTurn));
  }
  if (result) waiting.Over();
  return result;
}

TimePoint OffloadRuntime::NextTime() const {
  const TimePoint turn = seams_.clock->Now() + kTurn;
  return ranks_ == nullptr ? turn : std::min(turn, ranks_->NextTime());
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

void OffloadRuntime::SetRates(const HardwareRates& rates) {
  step_times_.SetRates(rates, Floor(Traffic(), rates));
  record_.Disturbed();
}

absl::Status OffloadRuntime::WriteTrace(const std::string& path) const {
  return trace_.WriteChromeJson(path, RecordingJson());
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
  step_times_.Reset(seams_.clock->Now());
  store_->ResetCounters();
  trace_.Clear();
}

}  // namespace sluice
