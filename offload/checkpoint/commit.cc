#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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

constexpr uint64_t kPartBytesMax = uint64_t{1} << 33;

absl::Status WriteWhole(Files* files, const std::string& path, const std::string& text) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, files->Create(path, text.size()));
  SLUICE_RETURN_IF_ERROR(file->Write(0, std::as_bytes(std::span(text))));
  return file->Sync();
}

// One save on its way to being there.
class Commit {
 public:
  Commit(Files* files, const CheckpointPlace& place)
      : files_(files),
        place_(place),
        saving_(HiddenPath(Hidden::kSaving)),
        aside_(HiddenPath(Hidden::kReplaced)),
        final_(Join(place.directory, place.tag)) {}

  // checkpoint.json, durable.
  absl::Status WriteIndex();
  // The name, durable. Nothing has changed if it fails, but where that fails too, as is said then.
  absl::Status Name();
  absl::Status WriteLatest();
  // What lay under the tag. What fails is left to PruneCheckpoints.
  void RemoveReplaced();

 private:
  std::string HiddenPath(Hidden kind) const {
    return Join(place_.directory, HiddenNameOf(place_.tag, place_.id, kind));
  }
  absl::Status AddPart(uint32_t rank, IndexText* index);
  absl::Status Parent();

  Files* const files_;
  const CheckpointPlace& place_;
  const std::string saving_, aside_, final_;
  // Of all parts.
  uint32_t ranks_ = 1;
  std::vector<SavedTensor> tensors_;
  uint64_t tensors_checksum_ = 0;
  std::vector<PieceKey> keys_;
};

absl::Status Commit::AddPart(uint32_t rank, IndexText* index) {
  const std::string source = Join(saving_, PartName(rank));
  auto text = ReadText(files_, source, kPartBytesMax);
  if (absl::IsNotFound(text.status()))
    return absl::DataLossError(
        fmt::format("rank {} has not finished its part: {}", rank, Message(text.status())));
  if (!text.ok()) return text.status();
  SLUICE_ASSIGN_OR_RETURN(PartText parsed, ParsePart(*text, source));
  SavedPart& part = parsed.part;
  if (rank == 0) {
    ranks_ = part.ranks;
    tensors_ = std::move(part.tensors);
    tensors_checksum_ = parsed.tensors_checksum;
  }
  if (part.id != place_.id || part.rank != rank || part.ranks != ranks_)
    return absl::DataLossError(
        fmt::format("{} is of rank {} of {} of save {:016x}, not of rank {} of {} of save {:016x}",
                    source, part.rank, part.ranks, part.id, rank, ranks_, place_.id));
  if (parsed.tensors_checksum != tensors_checksum_)
    return absl::DataLossError(
        fmt::format("{}: rank {} has saved another model than rank 0, or other numbers of steps",
                    source, rank));
  SLUICE_RETURN_IF_ERROR(LayOutLoaded(tensors_, parsed, source).status());
  AppendKeys(&keys_, part);
  index->parts.push_back({text->size(), ChecksumOf(*text)});
  for (const SavedFile file : {kTrained, kFrozen})
    if (parsed.data[file].header_bytes > 0)
      index->files.push_back({DataName(rank, file), parsed.data[file].size()});
  for (const SavedPart::Attachment& attachment : part.attachments)
    index->files.push_back({AttachmentFile(rank, attachment.name), attachment.bytes});
  return absl::OkStatus();
}

absl::Status Commit::Parent() {
  const absl::Status synced = files_->SyncDirectory(ParentOf(place_.directory));
  // A parent that may not be read is not ours to make durable.
  return absl::IsPermissionDenied(synced) ? absl::OkStatus() : synced;
}

absl::Status Commit::WriteIndex() {
  IndexText index{.id = place_.id};
  for (uint32_t rank = 0; rank < ranks_; ++rank) SLUICE_RETURN_IF_ERROR(AddPart(rank, &index));
  SLUICE_RETURN_IF_ERROR(SortKeys(&keys_, tensors_, saving_));
  SLUICE_RETURN_IF_ERROR(CheckSizes(files_, saving_, index));
  for (const SavedTensor& tensor : tensors_) index.steps = std::max(index.steps, tensor.step);
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> others, files_->List(place_.directory));
  for (const std::string& name : others) {
    const std::string other = Join(place_.directory, name);
    if (!files_->IsDirectory(other)) continue;
    const absl::StatusOr<IndexText> its = LoadIndex(files_, other);
    if (its.ok())
      index.sequence = std::max(index.sequence, std::min(its->sequence + 1, kSavedBytesMax));
  }
  index.saved_at = std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::seconds>(
                                            std::chrono::system_clock::now().time_since_epoch())
                                            .count());
  SLUICE_RETURN_IF_ERROR(WriteWhole(files_, Join(saving_, kIndexName), TextOf(index)));
  SLUICE_RETURN_IF_ERROR(files_->SyncDirectory(saving_));
  return Parent();
}

absl::Status Commit::Name() {
  using Move = std::function<absl::Status()>;
  std::vector<Move> back;  // what undoes what was done, in this order
  const auto rename = [&](const std::string& from, const std::string& to) {
    absl::Status renamed = files_->Rename(from, to);
    if (renamed.ok())
      back.insert(back.begin(), [this, from, to] { return files_->Rename(to, from); });
    return renamed;
  };
  absl::Status status;
  if (!files_->IsDirectory(final_)) {
    status = rename(saving_, final_);
  } else {
    const auto exchange = [this] { return files_->Exchange(saving_, final_); };
    status = exchange();
    if (status.ok()) {
      back.emplace_back(exchange);
    } else if (absl::IsUnimplemented(status)) {
      status = rename(final_, aside_);
      // Durable before the name is another's: of what is undone, any part may be lost.
      if (status.ok()) status = files_->SyncDirectory(place_.directory);
      if (status.ok()) status = rename(saving_, final_);
    }
  }
  if (status.ok()) status = files_->SyncDirectory(place_.directory);
  if (status.ok()) return status;
  for (const Move& undo : back) {
    const absl::Status undone = undo();
    if (undone.ok()) continue;
    return absl::Status(status.code(),
                        fmt::format("{}; and undoing what was done failed, so {} may be the new "
                                    "checkpoint or the one before: {}",
                                    Message(status), final_, Message(undone)));
  }
  return status;
}

absl::Status Commit::WriteLatest() {
  const std::string next =
      Join(place_.directory, HiddenNameOf(kLatest, place_.id, Hidden::kSaving));
  absl::Status status = WriteWhole(files_, next, place_.tag);
  if (status.ok()) status = files_->Rename(next, Join(place_.directory, kLatest));
  if (status.ok()) status = files_->SyncDirectory(place_.directory);
  if (status.ok()) return status;
  (void)files_->Remove(next);
  return absl::Status(status.code(),
                      fmt::format("the checkpoint {} is there; only '{}' does not name it: {}",
                                  final_, kLatest, Message(status)));
}

void Commit::RemoveReplaced() {
  const auto names = files_->List(place_.directory);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    const std::optional<HiddenName> hidden = ParseHiddenName(name);
    if (!hidden || hidden->tag != place_.tag) continue;
    const bool was_exchanged = hidden->kind == Hidden::kSaving && hidden->id == place_.id;
    if (hidden->kind != Hidden::kReplaced && !was_exchanged) continue;
    std::string path = Join(place_.directory, name);
    if (hidden->kind == Hidden::kReplaced) {  // a name under which it would be found
      const std::string removing =
          Join(place_.directory, HiddenNameOf(hidden->tag, hidden->id, Hidden::kRemoving));
      if (!files_->Rename(path, removing).ok() || !files_->SyncDirectory(place_.directory).ok())
        continue;
      path = removing;
    }
    // What somebody else has put into it goes where they look for it.
    const auto inside = files_->List(path);
    if (!inside.ok()) continue;
    const auto there = files_->List(final_);
    if (!there.ok()) continue;
    for (const std::string& file : *inside)
      if (!IsOurs(file) && !std::binary_search(there->begin(), there->end(), file))
        (void)files_->Rename(Join(path, file), Join(final_, file));
    (void)RemoveOurs(files_, path);
  }
}

}  // namespace

absl::Status CommitCheckpoint(Files* files, const CheckpointPlace& place, bool latest) {
  SLUICE_RETURN_IF_ERROR(CheckTag(place.tag));
  Commit commit(files, place);
  SLUICE_RETURN_IF_ERROR(commit.WriteIndex());
  SLUICE_RETURN_IF_ERROR(commit.Name());
  absl::Status status = latest ? commit.WriteLatest() : absl::OkStatus();
  commit.RemoveReplaced();
  return status;
}

absl::Status AbandonCheckpoint(Files* files, const CheckpointPlace& place) {
  SLUICE_RETURN_IF_ERROR(CheckTag(place.tag));
  const auto names = files->List(place.directory);
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  if (!names.ok()) return names.status();
  const auto has = [&names](const std::string& name) {
    return std::binary_search(names->begin(), names->end(), name);
  };
  const std::string saving = HiddenNameOf(place.tag, place.id, Hidden::kSaving);
  const std::string aside = HiddenNameOf(place.tag, place.id, Hidden::kReplaced);
  const std::string next_latest = HiddenNameOf(kLatest, place.id, Hidden::kSaving);
  if (has(aside) && !has(place.tag))
    SLUICE_RETURN_IF_ERROR(
        files->Rename(Join(place.directory, aside), Join(place.directory, place.tag)));
  // Whatever was undone must be so for good, before the names' files go.
  SLUICE_RETURN_IF_ERROR(files->SyncDirectory(place.directory));
  if (has(next_latest)) SLUICE_RETURN_IF_ERROR(RemoveHidden(files, place.directory, next_latest));
  if (!has(saving)) return absl::OkStatus();
  // What has changed places with the new one is not of this save.
  const auto index = LoadIndex(files, Join(place.directory, saving));
  if (index.ok() && index->id != place.id) return absl::OkStatus();
  return RemoveOurs(files, Join(place.directory, saving));
}

}  // namespace sluice
