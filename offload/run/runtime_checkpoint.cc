// Turns in which a runtime is saved or loaded: as values are read and written, while nothing else
// moves.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/runtime.h"

namespace sluice {

Ticket OffloadRuntime::Checkpoint(CheckpointCall call) {
  std::unique_ptr<Turn> turn = spare_turns_.Take();
  turn->kind = Turn::Kind::kCheckpoint;
  turn->checkpoint = std::make_unique<CheckpointCall>(std::move(call));
  return SendTurn(std::move(turn));
}

bool OffloadRuntime::AdvanceCheckpoint(Turn& turn) {
  if (turn.begun) return false;
  residency_->Suspend();
  updater_->StopReadAhead();
  if (ranks_ != nullptr && ranks_->gathers()->renewing()) return false;
  if (!updater_->idle() || !gradients_->idle() || residency_->moving()) return false;
  auto* const load = std::get_if<LoadRequest>(turn.checkpoint.get());
  if (!MeetForAccess(turn) || (load != nullptr && !MeetRanks(turn))) return false;
  turn.begun = true;
  auto done = [this](const absl::Status& status) {
    const absl::Status failed = failure();
    EndTurn(failed.ok() ? status : failed);
  };
  if (load != nullptr) {
    Load(std::move(*load), std::move(done));
    return false;
  }
  auto& save = std::get<SaveRequest>(*turn.checkpoint);
  absl::Status ready;
  for (uint32_t t = 0; ready.ok() && t < layout_.tensors().size(); ++t) {
    const bool saved = !save.without_frozen || layout_.tensors()[t].keep != Keep::kParam;
    if (saved) ready = CheckLoaded(TensorIndex(t));
  }
  std::vector<int64_t> steps;
  {
    const std::lock_guard lock(mutex_);
    steps = tensor_steps_;
  }
  checkpoints_->Save(std::move(save), ready, std::move(steps), scaler_, std::move(done));
  return false;
}

void OffloadRuntime::Load(LoadRequest request, CheckpointJob::Done done) {
  LoadCalls calls;
  calls.chosen = [this](const std::string& path, const std::string& note) {
    const std::lock_guard lock(mutex_);
    loaded_from_ = path + (note.empty() ? "" : ": " + note);
  };
  calls.check = [this]() -> absl::Status {
    for (uint32_t u = 0; u < layout_.units().size(); ++u) {
      if (!residency_->acquired(UnitIndex(u))) continue;
      return absl::FailedPreconditionError(fmt::format(
          "unit '{}' is acquired: release every unit before loading", layout_.units()[u].name));
    }
    return absl::OkStatus();
  };
  calls.begin = [this](const std::vector<bool>& tensors) {
    changes_.assign(layout_.units().size(), false);
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (tensors[t]) changes_[layout_.tensors()[t].unit.value()] = true;
    }
    for (uint32_t u = 0; u < changes_.size(); ++u) {
      if (changes_[u]) SLUICE_CHECK(residency_->BeginUpdate(UnitIndex(u)).ok());
    }
  };
  calls.loaded = [this](TensorIndex tensor, int64_t steps) {
    set_tensor_step(tensor, steps);
    NoteLoaded(tensor);
  };
  // As after an update: what each rank has loaded of what all keep is gathered.
  calls.done = [this, done = std::move(done)](const absl::Status& status) {
    const bool began = std::ranges::find(changes_, true) != changes_.end();
    if (!status.ok() && began) Fail(status);
    for (uint32_t u = 0; status.ok() && u < changes_.size(); ++u) {
      if (changes_[u]) RenewOnRanks(UnitIndex(u));
    }
    if (status.ok()) ForgetGradients();  // of what there was before
    {
      const std::lock_guard lock(mutex_);
      last_step_.loss_scale = scaler_.scale();
    }
    done(status);
  };
  changes_.assign(layout_.units().size(), false);
  checkpoints_->Load(std::move(request), loaded_, &scaler_, std::move(calls));
}

}  // namespace sluice
