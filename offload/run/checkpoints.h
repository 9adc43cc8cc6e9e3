// offload/run/checkpoints.h
//
// What a runtime needs to save and load itself, one checkpoint at a time.
//
// Threads: the control thread.

#ifndef SLUICE_OFFLOAD_RUN_CHECKPOINTS_H_
#define SLUICE_OFFLOAD_RUN_CHECKPOINTS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/run/checkpoint_job.h"

namespace sluice {

class Checkpoints {
 public:
  // None is owned; `votes` is null if there is one rank. `threaded`: false in simulation.
  Checkpoints(const Context& context, Files* files, ValueAccess* values, Votes* votes,
              bool threaded)
      : background_(context.inbox, threaded), seams_{context, files, values, votes, &background_} {}

  // `ready`: what keeps this rank from it; the others hear of that. Otherwise as MakeSaveJob.
  void Save(SaveRequest request, const absl::Status& ready, std::vector<int64_t> steps,
            const LossScaler& scaler, CheckpointJob::Done done) {
    job_ = MakeSaveJob(
        seams_, std::move(request), ready, std::move(steps), scaler, &frozen_saved_,
        [this, done = std::move(done)](const absl::Status& status) { End(status, done); });
    job_->Start();
  }
  void Load(LoadRequest request, const std::vector<bool>& loaded, LossScaler* scaler,
            LoadCalls calls) {
    calls.done = [this, done = std::move(calls.done)](const absl::Status& status) {
      End(status, done);
    };
    frozen_saved_ = {};
    job_ = MakeLoadJob(seams_, std::move(request), loaded, scaler, std::move(calls));
    job_->Start();
  }
  // A frozen tensor was written: those that were saved are no longer what there is.
  void FrozenChanged() { frozen_saved_ = {}; }
  size_t pending() const { return background_.pending(); }  // pieces of work on files
  void Stop() { background_.Stop(); }                       // nothing is saved or loaded any more
  // The runtime has failed: nobody hears of what is under way. Not while values are busy.
  void Drop() {
    if (job_ != nullptr) std::exchange(job_, nullptr)->Drop();
  }

 private:
  void End(const absl::Status& status, const CheckpointJob::Done& done) {
    const std::shared_ptr<CheckpointJob> ended = std::move(job_);
    done(status);
  }

  Background background_;
  const CheckpointSeams seams_;
  std::shared_ptr<CheckpointJob> job_;
  FrozenSaved frozen_saved_;  // as they are
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHECKPOINTS_H_
