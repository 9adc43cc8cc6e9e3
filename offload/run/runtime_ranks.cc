// What a runtime does otherwise where there are other ranks.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "offload/run/runtime.h"

namespace sluice {

bool OffloadRuntime::Present(TensorIndex tensor) const {
  return ranks_ != nullptr ? ranks_->present(tensor) : gradients_->present(tensor);
}

// Returns whether all ranks have come to the step.
bool OffloadRuntime::MeetRanks(Turn& turn) {
  if (turn.met) return ranks_->met();
  if (ranks_->gathers()->renewing() || gradient_calls_->holds()) return false;
  if (!ranks_->gradients()->window_open()) return false;
  turn.met = true;
  ranks_->MeetForStep();
  return ranks_->met();
}

bool OffloadRuntime::MeetForAccess(Turn& turn) {
  if (!layout_.sharding().params) return true;
  if (!std::exchange(turn.met, true)) ranks_->gathers()->ComeToAccess();
  return ranks_->gathers()->all_at_access();
}

// Whether nothing that was given in this window is missing: it has been ended, if need be. At the
// end of an iteration with a step to come, the step does that.
bool OffloadRuntime::EndsWindow(bool at_boundary) {
  if (ranks_ == nullptr || (!at_boundary && residency_->boundary())) return true;
  GradExchange* const gradients = ranks_->gradients();
  if (!gradients->window_open() || gradient_calls_->holds()) return false;
  if (gradients->window_begun()) gradients->EndWindow(Topic::kWindowEnd);
  return true;
}

// Whether all that was given has reached its home; the others have to come as far.
bool OffloadRuntime::SettleGradients() {
  return EndsWindow(true) && (ranks_ == nullptr || ranks_->gradients()->idle());
}

void OffloadRuntime::ForgetGradients() {
  gradients_->ClearAll();
  if (ranks_ != nullptr) ranks_->gradients()->ClearAll();
}

// Of a step that was decided.
void OffloadRuntime::EndGradients() {
  ForgetGradients();
  if (ranks_ != nullptr) ranks_->StepBegun();
}

// The step can't be taken here. Where other ranks take it, nothing can go on.
void OffloadRuntime::Refuse(const absl::Status& status) {
  if (ranks_ != nullptr) return Fail(status);
  EndTurn(status);
}

// The unit's parameters were changed here; so they were, each in its part, on the other ranks.
void OffloadRuntime::RenewOnRanks(UnitIndex unit, uint32_t writes) {
  const UnitLayout& layout = layout_.unit(unit);
  const Sharding& sharding = layout_.sharding();
  const bool shared = sharding.params || (sharding.states && layout.updated_elements > 0);
  if (ranks_ != nullptr && shared && !layout.lent) return ranks_->gathers()->Renew(unit, writes);
  residency_->EndUpdate(unit);
}

// Of each write of values, in order. Units that lack values are not renewed before they have all.
// How many writes a rank has come to when it tells the others is its own affair, so they are
// counted.
void OffloadRuntime::EndWrite(UnitIndex unit) {
  const bool loaded = std::ranges::all_of(layout_.unit(unit).tensors,
                                          [this](TensorIndex t) { return loaded_[t.value()]; });
  if (ranks_ != nullptr && loaded) ++stale_[unit.value()];
  if (stale_[unit.value()] == 0 && !values_->Renews(unit)) residency_->EndUpdate(unit);
}

void OffloadRuntime::RenewWritten() {
  for (uint32_t u = 0; u < stale_.size(); ++u) {
    if (stale_[u] > 0) RenewOnRanks(UnitIndex(u), std::exchange(stale_[u], 0));
  }
}

// Here, or, of a tensor that this rank has no share of, where its gradient went.
bool OffloadRuntime::GradientKept(TensorIndex tensor) const {
  return gradients_->present(tensor) || (ranks_ != nullptr && ranks_->gradients()->given(tensor));
}

// Whether a compute copy is asked for that every rank has in memory, so that no other is needed.
bool OffloadRuntime::IsWholeHere(const ValueRequest& request) const {
  if (ranks_ == nullptr || request.write || request.field != Field::kParam) return false;
  const TensorLayout& tensor = layout_.tensor(request.tensor);
  return tensor.keep == Keep::kAll && !layout_.sharding().params &&
         placement_.param_home[tensor.unit.value()] != Tier::kNvme;
}

// Whether a request can begin as far as other ranks are concerned. They may wait for what was
// written here before they come to what is read here, which needs them.
bool OffloadRuntime::RanksAllow(const ValueRequest& request) {
  if (ranks_ == nullptr) return true;
  const bool alone = request.renews() && !layout_.sharding().params;  // as MeetForAccess has it
  if (!alone) {
    if (values_->Renews()) return false;
    RenewWritten();
  }
  return !request.renews() || !ranks_->gathers()->renewing();
}

// Whether a read has a part of the tensor only, and other ranks the rest.
bool OffloadRuntime::GathersValue(const ValueRequest& request) const {
  if (ranks_ == nullptr || request.write) return false;
  const Sharding& sharding = layout_.sharding();
  return layout_.tensor(request.tensor).keep == Keep::kParam ? sharding.params : sharding.states;
}

}  // namespace sluice
