// The turns of a runtime: steps, values and the forgetting of gradients, one after another, each as
// far as it can go.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/runtime.h"
#include "optim/convert.h"
#include "optim/norm.h"

namespace sluice {

namespace {

// Whether nothing moves while it is carried out.
bool Suspends(const Turn& turn) {
  return turn.kind == Turn::Kind::kValue || turn.kind == Turn::Kind::kCheckpoint;
}

}  // namespace

void OffloadRuntime::Advance() {
  while (values_begun_ < turns_.size()) {
    if (const absl::Status status = failure(); !status.ok()) {
      if (values_->busy() || values_begun_ > 0) return;
      checkpoints_->Drop();
      gradients_->CancelFinish();
      EndTurn(status);
      continue;
    }
    Turn& turn = *turns_[values_begun_];
    if (values_begun_ > 0 && turn.kind != Turn::Kind::kValue) return;
    const bool went_on = turn.kind == Turn::Kind::kStep         ? AdvanceStep(turn)
                         : turn.kind == Turn::Kind::kValue      ? AdvanceValue(turn)
                         : turn.kind == Turn::Kind::kCheckpoint ? AdvanceCheckpoint(turn)
                                                                : AdvanceClearGrads(turn);
    if (!went_on) return;
  }
}

// A step passes three gates: the last update has ended and all gradients have arrived and are
// summed; the decision; and nothing is being fetched, nor still read by the caller's streams.
// Together with other ranks it passes two more: all have come to it, and know the same sums.
// Returns whether the turn has ended.
bool OffloadRuntime::AdvanceStep(Turn& turn) {
  if (turn.summing || updater_->updating()) return false;
  if (ranks_ != nullptr && ranks_->gathers()->renewing()) return false;
  if (!MeetRanks(turn)) return false;
  if (!turn.summed) {
    turn.summing = true;
    gradients_->Finish([this] {
      Turn& front = *turns_.front();
      front.summing = false;
      front.summed = true;
    });
    if (turn.summing) return false;
  }
  if (ranks_ != nullptr && !ExchangeSums(turn)) return false;
  const size_t turns = turns_.size();
  DecideStep(turn);
  return turns_.size() < turns;
}

absl::Status OffloadRuntime::CheckStep(const StepRequest& request) const {
  for (uint32_t t = 0; t < layout_.tensors().size(); ++t) {
    const TensorLayout& tensor = layout_.tensors()[t];
    if (!IsLent(tensor.keep) || !Present(TensorIndex(t))) continue;
    if (t >= request.lent.size() || request.lent[t].data == nullptr) {
      return absl::InvalidArgumentError(fmt::format(
          "tensor '{}' has a gradient, but the step was not told where its parameter lies",
          tensor.name));
    }
    if (tensor.keep == Keep::kMoments && request.lent[t].type != FloatType::kF32) {
      return absl::InvalidArgumentError(
          fmt::format("the parameter of tensor '{}', of which only moments are kept, is the "
                      "master, so it must be fp32",
                      tensor.name));
    }
  }
  return absl::OkStatus();
}

absl::Status OffloadRuntime::CheckReleased() const {
  for (uint32_t t = 0; t < layout_.tensors().size(); ++t) {
    const UnitIndex unit = layout_.tensors()[t].unit;
    if (!Present(TensorIndex(t)) || !residency_->acquired(unit)) continue;
    return absl::FailedPreconditionError(fmt::format(
        "unit '{}' is acquired: release every unit before the step", layout_.unit(unit).name));
  }
  return absl::OkStatus();
}

void OffloadRuntime::DecideStep(Turn& turn) {
  if (!turn.decision) {
    if (const absl::Status status = CheckStep(turn.step); !status.ok()) return Refuse(status);
    turn.decision =
        DecideClip(NormOfCells(gradients_->cells()), scaler_.scale(), turn.step.clip_norm);
    const absl::Status agreed = ranks_ == nullptr ? absl::OkStatus() : ranks_->CheckStep();
    if (!turn.decision->overflow && !agreed.ok()) return EndTurn(agreed);
  }
  const ClipDecision decision = *turn.decision;
  if (!decision.overflow) {
    residency_->Suspend();
    if (residency_->moving()) return;
    if (const absl::Status status = CheckReleased(); !status.ok()) {
      residency_->Replan();
      return Refuse(status);
    }
  }
  const absl::Status scaled = scaler_.Update(decision.overflow);
  {
    const std::lock_guard lock(mutex_);
    last_step_ = {
        .grad_norm = decision.norm, .applied = !decision.overflow, .loss_scale = scaler_.scale()};
  }
  step_times_.Stepped(turn.called);
  if (decision.overflow) {
    metrics_.Get("steps_skipped")->Add();
    ForgetGradients();
    residency_->Replan();
    return EndTurn(scaled);
  }
  metrics_.Get("steps")->Add();
  StartUpdate(turn, decision.grad_scale);
}

void OffloadRuntime::StartUpdate(Turn& turn, float grad_scale) {
  updater_->SetOrder(residency_->UnitOrder());
  updates_.assign(layout_.tensors().size(), std::nullopt);
  changes_.assign(layout_.units().size(), false);
  const std::vector<ParamPlace>& lent = turn.step.lent;
  {
    const std::lock_guard lock(mutex_);
    for (uint32_t t = 0; t < layout_.tensors().size(); ++t) {
      if (!Present(TensorIndex(t))) continue;
      const TensorLayout& tensor = layout_.tensors()[t];
      updates_[t] = {
          update_.rule().Scalars(turn.step.groups[tensor.group], ++tensor_steps_[t], grad_scale),
          t < lent.size() ? lent[t] : ParamPlace(), gradients_->lent(TensorIndex(t))};
      changes_[tensor.unit.value()] = true;
    }
  }
  for (uint32_t u = 0; u < changes_.size(); ++u) {
    if (changes_[u]) SLUICE_CHECK(residency_->BeginUpdate(UnitIndex(u)).ok());
  }
  ForgetGradients();
  updater_->Start(&updates_);
  for (uint32_t u = 0; u < changes_.size(); ++u) {  // of which this rank updates nothing
    if (changes_[u] && !updater_->UnitPending(UnitIndex(u))) OnUnitUpdated(UnitIndex(u));
  }
  backward_begun_ = false;
  residency_->Replan();
  if (!options_.overlap && updater_->updating()) {
    step_ticket_ = std::exchange(turn.ticket, 0);
  }
  EndTurn(absl::OkStatus());
}

absl::Status OffloadRuntime::CheckLoaded(TensorIndex tensor) const {
  if (loaded_[tensor.value()]) return absl::OkStatus();
  const TensorLayout& t = layout_.tensor(tensor);
  return absl::FailedPreconditionError(
      fmt::format("tensor '{}' of unit '{}' has no values yet (sluice_write its {})", t.name,
                  layout_.unit(t.unit).name, t.keep == Keep::kMoments ? "moments" : "master"));
}

void OffloadRuntime::NoteLoaded(TensorIndex tensor) {
  if (loaded_[tensor.value()]) return;
  loaded_[tensor.value()] = true;
  const UnitIndex unit = layout_.tensor(tensor).unit;
  if (--unloaded_[unit.value()] == 0) residency_->SetLoaded(unit);
}

absl::Status OffloadRuntime::CheckValueRequest(const ValueRequest& request) const {
  const TensorLayout& tensor = layout_.tensor(request.tensor);
  if (!request.of_gradient() && !request.of_parameter())
    SLUICE_RETURN_IF_ERROR(update_.CheckKeeps(request.field));
  if (!request.of_gradient() && !request.of_parameter() && tensor.keep == Keep::kParam) {
    return absl::NotFoundError(
        fmt::format("tensor '{}' is frozen: it has no optimizer states", tensor.name));
  }
  if (request.of_parameter() && tensor.keep == Keep::kMoments) {
    return absl::NotFoundError(fmt::format(
        "of tensor '{}' only moments are kept: its parameter, in your memory, is the master",
        tensor.name));
  }
  if (request.renews()) return absl::OkStatus();
  if (request.of_gradient() && gradients_->lent(request.tensor) != nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("the gradient of tensor '{}' is lent: it is in your memory", tensor.name));
  }
  if (request.write) {
    SLUICE_RETURN_IF_ERROR(gradients_->CheckTakes(request.tensor));
    return CheckLoaded(request.tensor);
  }
  if (request.of_gradient()) {
    const bool present =
        ranks_ != nullptr ? ranks_->gradients()->met_given() : gradients_->present(request.tensor);
    return present ? absl::OkStatus()
                   : absl::NotFoundError(fmt::format("tensor '{}' has no gradient", tensor.name));
  }
  return CheckLoaded(request.tensor);
}

// Value requests run while nothing else moves. One joins those that run when they leave room; one
// of a gradient, among ranks, only where none run.
bool OffloadRuntime::AdvanceValue(Turn& turn) {
  if (!values_->hungry()) return false;
  ValueRequest& request = turn.value;
  residency_->Suspend();
  updater_->StopReadAhead();
  if (ranks_ != nullptr && ranks_->gathers()->renewing()) return false;
  if (ranks_ != nullptr && request.of_gradient() && values_begun_ > 0) return false;
  if (request.of_gradient() && !MeetRanks(turn)) return false;
  if (request.of_gradient()) gradients_->StoreKept();
  if (!updater_->idle() || !gradients_->idle() || residency_->moving()) return false;
  if (!MeetForAccess(turn) || AwaitsWrite(request)) return false;
  const UnitIndex unit = layout_.tensor(request.tensor).unit;
  absl::Status refused = CheckValueRequest(request);
  if (refused.ok() && request.renews()) refused = residency_->BeginUpdate(unit);
  if (!refused.ok()) {
    if (values_begun_ > 0) return false;  // what it lacks may be among what is being written
    EndTurn(refused);
    return true;
  }
  if (IsWholeHere(request)) {
    if (values_begun_ > 0) return false;
    const TensorLayout& tensor = layout_.tensor(request.tensor);
    if (!placement_.hbm_in_place && placement_.param_home[unit.value()] == Tier::kHbm) {
      ++values_begun_;
      values_->ReadWhole(request.tensor, request.data, request.type.floats(),
                         [this, turn = &turn, asked = request](const absl::Status& status) {
                           EndValue(turn, asked, status);
                         });
      return true;
    }
    const FloatType type = tensor.types.param.floats();
    Convert(memory_.param_home[unit.value()] + tensor.offset * SizeOf(type), type, request.data,
            request.type.floats(), static_cast<size_t>(tensor.elements));
    EndTurn(absl::OkStatus());
    return true;
  }
  request.done = [this, turn = &turn, asked = request](const absl::Status& status) {
    const absl::Status failed = failure();  // a write before this one
    if (!status.ok() && asked.write) Fail(status);
    const absl::Status result = failed.ok() ? status : failed;
    if (!result.ok() || !GathersValue(asked)) return EndValue(turn, asked, result);
    GatherValue(asked, [this, turn, asked](const absl::Status& gathered) {
      EndValue(turn, asked, gathered);
    });
  };
  ++values_begun_;
  values_->Start(std::move(request));
  return true;
}

// Turns end in order: one whose request has ended sooner, as others have to be gathered, waits.
void OffloadRuntime::EndValue(Turn* turn, const ValueRequest& request, const absl::Status& status) {
  const TensorIndex tensor = request.tensor;
  const UnitIndex unit = layout_.tensor(tensor).unit;
  const bool loads =
      request.renews() && (request.of_parameter() || layout_.tensor(tensor).keep == Keep::kMoments);
  if (status.ok() && loads) NoteLoaded(tensor);
  if (request.renews() && layout_.tensor(tensor).keep == Keep::kParam)
    checkpoints_->FrozenChanged();
  if (status.ok() && request.write && request.of_gradient()) ReplaceGradient(tensor);
  if (request.renews() && !values_->Renews(unit)) residency_->EndUpdate(unit);
  turn->ended = status;
  while (values_begun_ > 0 && turns_.front()->ended) {
    --values_begun_;
    EndTurn(*turns_.front()->ended);
  }
}

// Gradients that an update holds back are forgotten before they were taken; those on their way are
// waited for.
bool OffloadRuntime::AdvanceClearGrads(Turn& turn) {
  gradient_calls_->Forget(turn.cleared);
  if (!MeetRanks(turn) || !gradients_->idle()) return false;
  if (!turn.cleared) {
    ForgetGradients();
  } else {
    gradients_->Clear(*turn.cleared);
    if (ranks_ != nullptr) ranks_->gradients()->Clear(*turn.cleared);
  }
  EndTurn(absl::OkStatus());
  return true;
}

// The first turn is over. What was held back for it goes on, unless another value request follows.
void OffloadRuntime::EndTurn(const absl::Status& status) {
  std::unique_ptr<Turn> turn = std::move(turns_.front());
  turns_.pop_front();
  calls_.TurnEnded();
  if (turn->meets) ranks_->MeetingOver();
  if (turn->ticket != 0) tickets_.Complete(turn->ticket, status);
  const bool suspended = Suspends(*turn);
  turn->Reset();
  spare_turns_.Give(std::move(turn));
  if (suspended && (turns_.empty() || !Suspends(*turns_.front()))) {
    residency_->Replan();
    ReadAheadIfUseful();
  }
}

void OffloadRuntime::ReadAheadIfUseful() {
  const bool suspended = !turns_.empty() && Suspends(*turns_.front());
  if (backward_begun_ && !suspended && updater_->idle() && residency_->boundary())
    updater_->AllowReadAhead();
}

}  // namespace sluice
