// offload/run/checkpoint_job.h
//
// A run that is being saved or loaded, chunk by chunk: images of a few chunks are under way between
// the tiers (ValueAccess) and the files, on which Background works. Nothing else moves meanwhile
// (the runtime sees to that). Among ranks all begin, or none, and what one could not save none has
// saved (Votes).
//
// Threads: the control thread; what is given to Do's `work` runs elsewhere, and uses nothing but
// the job's own. Allocates: memory for kImages of the largest chunk.

#ifndef SLUICE_OFFLOAD_RUN_CHECKPOINT_JOB_H_
#define SLUICE_OFFLOAD_RUN_CHECKPOINT_JOB_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/checkpoint/files.h"
#include "offload/checkpoint/writer.h"
#include "offload/run/background.h"
#include "offload/run/chunk_image.h"
#include "offload/run/value_access.h"
#include "offload/run/votes.h"
#include "optim/loss_scale.h"

namespace sluice {

struct SaveRequest {
  CheckpointPlace place;
  std::vector<std::pair<std::string, std::string>> attachments{};  // names and bytes
  bool latest = false;
  bool without_frozen = false;
};

struct LoadRequest {
  std::string directory;
  std::string tag;              // empty: CheckpointReader::Open's choice
  bool without_states = false;  // moments become 0, and so do numbers of updates
  bool some = false;            // what it lacks stays as it is
};

// What jobs of one runtime share. Nothing is owned.
struct CheckpointSeams {
  Context context;
  Files* files;
  ValueAccess* values;
  Votes* votes;  // null: one rank
  Background* background;
};

class CheckpointJob : public std::enable_shared_from_this<CheckpointJob> {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // `what`: a hash of all that must be the same on all ranks.
  CheckpointJob(const CheckpointSeams& seams, uint64_t what) : seams_(seams), what_(what) {}
  virtual ~CheckpointJob() = default;
  virtual void Start() = 0;
  // The runtime has failed: nobody hears of it any more. Not while values are busy.
  void Drop() { dropped_ = true; }

 protected:
  static constexpr size_t kImages = 3;

  const CheckpointSeams& seams() const { return seams_; }
  const ModelLayout& layout() const { return *seams_.context.layout; }
  bool IsFirst() const { return layout().sharding().rank.value() == 0; }

  // `then` is not called once the job was dropped.
  void Do(Background::Work work, Done then);
  // All ranks say how they fared, `and_what` beside what the job is about. `then` hears how all
  // did: this one's error, or which others had one, or are about something else.
  void Vote(const absl::Status& status, uint64_t and_what, Done then);
  // This rank is at work still: others wait on. Call now and then.
  void GoesOn();

  // Images, of which `under_way` are taken.
  void MakeImages();
  std::vector<std::byte>* TakeImage();  // null: none is free
  void GiveImage(std::vector<std::byte>* image) { free_images_.push_back(image); }
  bool any_under_way() const { return free_images_.size() < images_.size(); }
  void AccessImage(ChunkIndex chunk, std::vector<std::byte>* image, bool write, Done then);

 private:
  const CheckpointSeams seams_;
  const uint64_t what_;
  bool dropped_ = false;
  TimePoint went_on_{0};
  std::vector<std::unique_ptr<std::vector<std::byte>>> images_;
  std::vector<std::vector<std::byte>*> free_images_;
};

// `done` with an error: the checkpoints that there were are still there. `ready`: what keeps this
// rank from it, and so all. `frozen` (not owned): where frozen values were saved before, and, if
// all goes well, are now.
std::shared_ptr<CheckpointJob> MakeSaveJob(const CheckpointSeams& seams, SaveRequest request,
                                           absl::Status ready, std::vector<int64_t> steps,
                                           const LossScaler& scaler, FrozenSaved* frozen,
                                           CheckpointJob::Done done);

struct LoadCalls {
  // What was chosen: its path, and what a person should hear (CheckpointReader::note).
  std::function<void(const std::string& path, const std::string& note)> chosen;
  std::function<absl::Status()> check;  // what of this rank's keeps all from it
  // All can: these tensors are going to change.
  std::function<void(const std::vector<bool>&)> begin;
  // Of every tensor that has been loaded, after the last: how many updates it has had.
  std::function<void(TensorIndex, int64_t)> loaded;
  CheckpointJob::Done done;  // an error after `begin`: part of the model is changed
};
// `loaded`: by tensor, those that have values now; others must be in the checkpoint. `scaler` is
// changed at the end, if states are loaded; not owned.
std::shared_ptr<CheckpointJob> MakeLoadJob(const CheckpointSeams& seams, LoadRequest request,
                                           const std::vector<bool>& loaded, LossScaler* scaler,
                                           LoadCalls calls);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHECKPOINT_JOB_H_
