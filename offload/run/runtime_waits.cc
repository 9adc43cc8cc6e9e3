// What the caller waits for, as the control thread sees it each time before it waits itself.

#include "offload/run/runtime.h"

namespace sluice {

void OffloadRuntime::NoteWait() {
  const std::optional<WaitedFor> what = WaitsFor();
  if (what || step_times_.waiting()) step_times_.WaitsFor(what, seams_.clock->Now());
}

std::optional<WaitedFor> OffloadRuntime::WaitsFor() {
  if (!turns_.empty() && turns_.front()->kind == Turn::Kind::kStep)
    return StepWaitsFor(*turns_.front());
  if (residency_->waiting()) return AcquisitionWaitsFor(residency_->first_waiting());
  const bool awaited = !drains_.empty() || step_ticket_ != 0;
  if (awaited && updater_->updating()) return UpdateWaitsFor();
  return std::nullopt;
}

// In the order of AdvanceStep's gates.
WaitedFor OffloadRuntime::StepWaitsFor(const Turn& turn) const {
  if (updater_->updating()) return UpdateWaitsFor();
  if (ranks_ != nullptr && ranks_->gathers()->renewing()) return WaitedFor::kRanks;
  // Until this rank has nothing to do for it any more, its own gradients are what is waited for.
  if (ranks_ != nullptr && !turn.met)
    return ranks_->gradients()->own_left() ? WaitedFor::kGradients : WaitedFor::kRanks;
  if (turn.summing) return gradients_->only_spilling() ? WaitedFor::kDrive : WaitedFor::kGradients;
  if (!turn.decision) return WaitedFor::kRanks;  // who exchange sums
  return residency_->transferring() ? WaitedFor::kFetch : WaitedFor::kRanks;
}

WaitedFor OffloadRuntime::AcquisitionWaitsFor(UnitIndex unit) const {
  if (residency_->pending(unit)) {
    const bool here = updater_->UnitPending(unit) || ranks_ == nullptr;
    return here ? UpdateWaitsFor() : WaitedFor::kRanks;
  }
  if (placement_.param_home[unit.value()] == Tier::kNvme && !store_->idle())
    return WaitedFor::kDrive;
  const bool gathered = ranks_ != nullptr && placement_.IsShared(unit.value());
  return gathered && !residency_->transferring() ? WaitedFor::kRanks : WaitedFor::kFetch;
}

WaitedFor OffloadRuntime::UpdateWaitsFor() const {
  return updater_->computing() || store_->idle() ? WaitedFor::kUpdate : WaitedFor::kDrive;
}

}  // namespace sluice
