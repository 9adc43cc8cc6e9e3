#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/loading.h"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/removal.h"
#include "offload/checkpoint/writer.h"

namespace sluice {

namespace {

// The first error, with all that stays for what is in it.
class Outcome {
 public:
  void Note(const absl::Status& status) {
    if (status.ok()) return;
    if (absl::IsFailedPrecondition(status)) {
      stays_ += (stays_.empty() ? "" : "; ") + std::string(Message(status));
    } else if (error_.ok()) {
      error_ = status;
    }
  }
  bool failed() const { return !error_.ok(); }
  absl::Status status() const {
    if (!error_.ok() || stays_.empty()) return error_;
    return absl::FailedPreconditionError(stays_);
  }

 private:
  absl::Status error_;
  std::string stays_;
};

// All hidden names but those under which a checkpoint was found. No file goes before it is durable
// that nothing else names it.
absl::Status RemoveAllHidden(Files* files, const std::string& directory,
                             const std::vector<FoundCheckpoint>& found, Outcome* outcome) {
  SLUICE_RETURN_IF_ERROR(files->SyncDirectory(directory));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> names, files->List(directory));
  for (const std::string& name : names) {
    if (!ParseHiddenName(name)) continue;
    const auto has_it = [&](const FoundCheckpoint& one) {
      return one.path == Join(directory, name);
    };
    if (std::none_of(found.begin(), found.end(), has_it))
      outcome->Note(RemoveHidden(files, directory, name));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> PruneCheckpoints(Files* files,
                                                          const std::string& directory,
                                                          uint32_t keep, uint64_t every) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<FoundCheckpoint> found,
                          FindCheckpoints(files, directory));
  Outcome outcome;
  // What saves that died have left goes first: its names may be wanted.
  SLUICE_RETURN_IF_ERROR(RemoveAllHidden(files, directory, found, &outcome));
  std::vector<std::string> removed;
  uint32_t whole = 0;
  std::vector<const FoundCheckpoint*> old;
  for (const FoundCheckpoint& checkpoint : found) {
    if (!checkpoint.summary.status.ok() || whole++ < keep) continue;
    if (every == 0 || checkpoint.summary.steps % every != 0) old.push_back(&checkpoint);
  }
  for (; !old.empty() && !outcome.failed(); old.pop_back()) {
    const CheckpointSummary& summary = old.back()->summary;
    const std::string hidden = HiddenNameOf(summary.tag, summary.id, Hidden::kRemoving);
    const absl::Status renamed = files->Rename(old.back()->path, Join(directory, hidden));
    outcome.Note(renamed);
    if (renamed.ok()) removed.push_back(summary.tag);
  }
  if (!removed.empty()) SLUICE_RETURN_IF_ERROR(RemoveAllHidden(files, directory, found, &outcome));
  SLUICE_RETURN_IF_ERROR(outcome.status());
  return removed;
}

}  // namespace sluice
