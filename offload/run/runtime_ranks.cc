// What a runtime does otherwise where there are other ranks.

#include <algorithm>
#include <array>
#include <utility>

#include "core/status.h"
#include "offload/run/runtime.h"

namespace sluice {

bool OffloadRuntime::Present(TensorIndex tensor) const {
  return ranks_ != nullptr ? ranks_->present(tensor) : gradients_->present(tensor);
}

// Returns whether all ranks have come to this turn, and everything that was given to any of them
// before has reached its home.
bool OffloadRuntime::MeetRanks(Turn& turn) {
  if (ranks_ == nullptr) return true;
  if (!turn.meets) {
    if (gradient_calls_->holds() || !ranks_->gradients()->window_open()) return false;
    turn.meets = true;
    if (turn.kind == Turn::Kind::kStep) {
      ranks_->Meet(Topic::kStep);
    } else if (turn.kind != Turn::Kind::kValue) {  // loading forgets all, too
      ranks_->Meet(Topic::kClear, turn.cleared ? turn.cleared->value() + 1 : 0);
    } else {
      const TensorIndex tensor = turn.value.tensor;
      ranks_->Meet(Topic::kGradient,
                   2 * tensor.value() + (ranks_->gradients()->given(tensor) ? 1 : 0));
    }
  }
  turn.met = turn.met || ranks_->met();
  return turn.met;
}

// Whether the iteration may end: its window has been ended, if anything was given in it. That of an
// iteration with a step to come is ended by the step.
bool OffloadRuntime::EndsWindow() {
  if (ranks_ == nullptr || residency_->boundary()) return true;
  GradExchange* const gradients = ranks_->gradients();
  if (!gradients->window_open() || gradient_calls_->holds()) return false;
  if (gradients->window_begun()) gradients->EndWindow({Topic::kWindowEnd, 0});
  return true;
}

void OffloadRuntime::ForgetGradients() {
  gradients_->ClearAll();
  if (ranks_ != nullptr) ranks_->gradients()->ClearAll();
}

// What the ranks agree on before a step, of what each was told: a hash. Rules are asked what they
// make of some numbers, since nobody else knows their hyperparameters.
uint64_t OffloadRuntime::StepHash(const StepRequest& request) const {
  uint64_t hash = 14695981039346656037u;  // FNV-1a, 64 bits
  const auto add = [&hash](const auto& value) {
    for (const std::byte byte : std::as_bytes(std::span(&value, 1)))
      hash = (hash ^ static_cast<uint64_t>(byte)) * 1099511628211u;
  };
  add(request.clip_norm);
  add(scaler_.scale());
  for (const Hyperparameters& group : request.groups) {
    std::array<float, kStateFieldsMax> values;
    std::array<float*, kStateFieldsMax> fields;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = 0.5F;
      fields[i] = &values[i];
    }
    const float gradient = 0.25F;
    const UpdateRule& rule = update_.rule();
    rule.UpdateTile(rule.Scalars(group, 2, 1), fields.data(), &gradient, 1);
    add(values);
  }
  const std::lock_guard lock(mutex_);
  for (const int64_t step : tensor_steps_) add(step);
  return hash;
}

// Returns whether all ranks know the same sums. What one of them can't do, none does.
bool OffloadRuntime::ExchangeSums(Turn& turn) {
  if (!turn.exchanged) {
    turn.exchanged = true;
    ranks_->ExchangeSums(StepHash(turn.step),
                         [this](UnitIndex unit) { return residency_->acquired(unit); });
  }
  return ranks_->sums_exchanged();
}

// The step can't be taken here. Where other ranks take it, nothing can go on.
void OffloadRuntime::Refuse(const absl::Status& status) {
  if (ranks_ != nullptr) return Fail(status);
  EndTurn(status);
}

// The unit's parameters were changed here; so they were, each in its part, on the other ranks.
void OffloadRuntime::RenewOnRanks(UnitIndex unit) {
  const UnitLayout& layout = layout_.unit(unit);
  const Sharding& sharding = layout_.sharding();
  const bool shared = sharding.params || (sharding.states && layout.updated_elements > 0);
  if (ranks_ != nullptr && shared && !layout.lent) return ranks_->gathers()->Renew(unit);
  residency_->EndUpdate(unit);
}

bool OffloadRuntime::MeetForAccess(Turn& turn) {
  if (!layout_.sharding().params) return true;
  if (!std::exchange(turn.at_access, true)) ranks_->gathers()->ComeToAccess();
  return ranks_->gathers()->all_at_access();
}

// Whether a read has a part of the tensor only, and other ranks the rest; or a write has changed a
// part only of what ranks share.
bool OffloadRuntime::GathersValue(const ValueRequest& request) const {
  if (ranks_ == nullptr) return false;
  const Sharding& sharding = layout_.sharding();
  const bool frozen = layout_.tensor(request.tensor).keep == Keep::kParam;
  const bool shared = frozen ? sharding.params : sharding.states;
  return shared && (!request.write || request.of_parameter());
}

// Whether a compute copy is asked for that every rank has in memory, so that no other is needed.
bool OffloadRuntime::IsWholeHere(const ValueRequest& request) const {
  if (ranks_ == nullptr || request.write || request.field != Field::kParam) return false;
  const TensorLayout& tensor = layout_.tensor(request.tensor);
  return tensor.keep == Keep::kAll && !layout_.sharding().params &&
         placement_.param_home[tensor.unit.value()] != Tier::kNvme;
}

// A unit is written by one request at a time where what each rank has changed is gathered.
bool OffloadRuntime::AwaitsWrite(const ValueRequest& request) const {
  return ranks_ != nullptr && layout_.sharding().states && request.renews() &&
         residency_->pending(layout_.tensor(request.tensor).unit);
}

// A gradient was written.
void OffloadRuntime::ReplaceGradient(TensorIndex tensor) {
  gradients_->Replaced(tensor);
  if (ranks_ != nullptr) ranks_->gradients()->SetGiven(tensor);
}

// Brings the parts that other ranks have of a value that was read, or written.
void OffloadRuntime::GatherValue(const ValueRequest& request, RankGathers::Done done) {
  const TensorLayout& tensor = layout_.tensor(request.tensor);
  if (!request.write) {
    return ranks_->gathers()->Complete(request.tensor, RankGathers::After::kRead, request.data,
                                       request.type.size(), std::move(done));
  }
  // Where the unit is whole nowhere, all that is needed is that every rank has written its part.
  const bool whole = !placement_.IsShared(tensor.unit.value());
  const int64_t size = whole ? tensor.types.param.size() : 0;
  ranks_->gathers()->Complete(
      request.tensor, RankGathers::After::kWrite,
      whole ? memory_.param_home[tensor.unit.value()] + tensor.offset * size : nullptr, size,
      std::move(done));
}

}  // namespace sluice
