#include "offload/checkpoint/writer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/checksum.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/loading.h"
#include "offload/checkpoint/manifest_text.h"
#include "offload/checkpoint/names.h"

namespace sluice {

namespace {

constexpr SavedFile kBoth[] = {kTrained, kFrozen};

ConstMemoryView BytesOf(const std::string& text) { return std::as_bytes(std::span(text)); }

absl::Status WriteWhole(Files* files, const std::string& path, ConstMemoryView bytes) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file,
                          files->Create(path, bytes.size()));
  SLUICE_RETURN_IF_ERROR(file->Write(0, bytes));
  return file->Sync();
}

}  // namespace

struct CheckpointWriter::State {
  Files* files;
  CheckpointPlace place;
  std::string path;  // of the directory that everything goes into
  PartText text;
  PartLayout layout;
  std::array<std::unique_ptr<OutputFile>, kSavedFiles> out;
  std::vector<bool> written;
  bool frozen_linked = false;
  bool finished = false;

  SavedPart& part() { return text.part; }
  const SavedTensor& TensorOf(const SavedPiece& piece) { return part().tensors[piece.tensor]; }
  std::string PathOf(SavedFile file) { return Join(path, DataName(part().rank, file)); }
  absl::Status MakeDirectories();
  absl::Status CreateFile(SavedFile file);
  absl::Status LinkFrozen(const FrozenSaved& saved);
};

absl::Status CheckpointWriter::State::MakeDirectories() {
  absl::Status made = files->MakeDirectory(place.directory);
  if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> names, files->List(place.directory));
  const std::string there = Join(place.directory, place.tag);
  if (std::binary_search(names.begin(), names.end(), place.tag) && !files->IsDirectory(there))
    return absl::FailedPreconditionError(
        fmt::format("{} is there, and is not a directory: give another tag", there));
  const absl::Status own = files->MakeDirectory(path);  // whichever rank is first
  return absl::IsAlreadyExists(own) ? absl::OkStatus() : own;
}

absl::Status CheckpointWriter::State::CreateFile(SavedFile file) {
  const std::string header = SafetensorsHeader(part().tensors, layout, file, place.id, part().rank);
  PartText::DataFile& data = text.data[file];
  data = {.header_bytes = header.size(),
          .header_checksum = ChecksumOf(header),
          .bytes = layout.bytes[file]};
  SLUICE_ASSIGN_OR_RETURN(out[file], files->Create(PathOf(file), data.size()));
  return out[file]->Write(0, BytesOf(header));
}

// Frozen values as they lie in an older checkpoint, if they are the same pieces of the same tensors
// in the same order. Nothing has changed if it fails.
absl::Status CheckpointWriter::State::LinkFrozen(const FrozenSaved& saved) {
  const std::string& from = saved.path;
  SLUICE_ASSIGN_OR_RETURN(const IndexText index, LoadIndex(files, from));
  if (part().rank >= index.parts.size()) return absl::NotFoundError("it has no such rank");
  SLUICE_ASSIGN_OR_RETURN(const PartText first, LoadPart(files, from, index, 0));
  PartText other = first;
  if (part().rank != 0) {
    SLUICE_ASSIGN_OR_RETURN(other, LoadPart(files, from, index, part().rank));
  }
  // Another run may have put its own there since.
  if (saved.frozen_id != 0 && other.part.frozen_id != saved.frozen_id)
    return absl::NotFoundError("its frozen values are another's");
  const std::vector<SavedTensor>& tensors = first.part.tensors;
  SLUICE_ASSIGN_OR_RETURN(const PartLayout old, LayOutLoaded(tensors, other, from));
  std::vector<std::pair<size_t, uint64_t>> found;  // piece and its checksum
  size_t next = 0;
  const auto skip = [&] {
    while (next < old.spots.size() && old.spots[next].file != kFrozen) ++next;
    return next < old.spots.size();
  };
  for (size_t i = 0; i < layout.spots.size(); ++i) {
    if (layout.spots[i].file != kFrozen) continue;
    if (!skip()) return absl::NotFoundError("it has fewer pieces");
    const SavedPiece &mine = part().pieces[i], &its = other.part.pieces[next];
    const SavedTensor &tensor = TensorOf(mine), &old_tensor = tensors[its.tensor];
    if (tensor.name != old_tensor.name || tensor.elements != old_tensor.elements ||
        tensor.type != old_tensor.type || mine.first != its.first ||
        mine.elements != its.elements || layout.spots[i].offset != old.spots[next].offset)
      return absl::NotFoundError("it has other pieces");
    found.emplace_back(i, other.part.checksums[next++]);
  }
  if (skip()) return absl::NotFoundError("it has more pieces");
  const std::string path_from = Join(from, DataName(part().rank, kFrozen));
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<InputFile> file, files->Open(path_from));
  if (file->size() != other.data[kFrozen].size()) return absl::DataLossError("it is cut off");
  SLUICE_RETURN_IF_ERROR(files->Link(path_from, PathOf(kFrozen)));
  for (const auto& [piece, checksum] : found) {
    part().checksums[piece] = checksum;
    written[piece] = true;
  }
  part().frozen_id = other.part.frozen_id;
  text.data[kFrozen] = other.data[kFrozen];
  return absl::OkStatus();
}

CheckpointWriter::CheckpointWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointWriter::~CheckpointWriter() = default;

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Begin(
    Files* files, const CheckpointPlace& place, SavedPart part, const FrozenSaved& frozen_from) {
  SLUICE_RETURN_IF_ERROR(CheckTag(place.tag));
  if (place.id == 0) return absl::InvalidArgumentError("a save's id can't be 0");
  if (part.ranks < 1 || part.ranks > kSavedRanksMax || part.rank >= part.ranks)
    return absl::InvalidArgumentError(
        fmt::format("rank {} of {} can't save", part.rank, part.ranks));
  SLUICE_RETURN_IF_ERROR(CheckTensors(part.tensors));
  SLUICE_ASSIGN_OR_RETURN(PartLayout layout, LayOut(part.tensors, part.pieces));
  auto state = std::make_unique<State>();
  state->files = files;
  state->place = place;
  state->path = Join(place.directory, HiddenNameOf(place.tag, place.id, Hidden::kSaving));
  part.id = part.frozen_id = place.id;
  part.attachments.clear();
  part.checksums.assign(part.pieces.size(), 0);
  state->written.assign(part.pieces.size(), false);
  state->text.part = std::move(part);
  state->layout = std::move(layout);
  SLUICE_RETURN_IF_ERROR(state->MakeDirectories());
  const bool has_frozen = !state->layout.runs[kFrozen].empty();
  state->frozen_linked =
      has_frozen && !frozen_from.path.empty() && state->LinkFrozen(frozen_from).ok();
  for (const SavedFile file : kBoth) {
    if (file == kFrozen && (!has_frozen || state->frozen_linked)) continue;
    SLUICE_RETURN_IF_ERROR(state->CreateFile(file));
  }
  return std::unique_ptr<CheckpointWriter>(new CheckpointWriter(std::move(state)));
}

bool CheckpointWriter::frozen_linked() const { return state_->frozen_linked; }

absl::Status CheckpointWriter::Write(size_t piece, ConstMemoryView bytes) {
  State& s = *state_;
  if (piece >= s.written.size() || s.written[piece] || s.finished)
    return absl::InvalidArgumentError(fmt::format("piece {} is not to be written", piece));
  const SavedPiece& of = s.part().pieces[piece];
  const int64_t size = of.elements * ElementSize(s.TensorOf(of), of.field);
  if (bytes.size() != static_cast<size_t>(size))
    return absl::InvalidArgumentError(
        fmt::format("piece {} has {} bytes, not {}", piece, size, bytes.size()));
  const PieceSpot& spot = s.layout.spots[piece];
  s.part().checksums[piece] = SeededChecksum(bytes, BlockIndex(spot.place), s.place.id);
  SLUICE_RETURN_IF_ERROR(
      s.out[spot.file]->Write(s.text.data[spot.file].header_bytes + spot.offset, bytes));
  s.written[piece] = true;
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Attach(const std::string& name, ConstMemoryView bytes) {
  State& s = *state_;
  SLUICE_RETURN_IF_ERROR(CheckAttachmentName(name));
  const auto same = [&name](const SavedPart::Attachment& other) { return other.name == name; };
  std::vector<SavedPart::Attachment>& all = s.part().attachments;
  if (s.finished || std::any_of(all.begin(), all.end(), same))
    return absl::InvalidArgumentError(fmt::format("{} is attached already", name));
  const auto place = BlockIndex(static_cast<uint32_t>(all.size()));
  SLUICE_RETURN_IF_ERROR(
      WriteWhole(s.files, Join(s.path, AttachmentFile(s.part().rank, name)), bytes));
  all.push_back({name, bytes.size(), SeededChecksum(bytes, place, s.place.id)});
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Finish() {
  State& s = *state_;
  const auto missing = std::find(s.written.begin(), s.written.end(), false);
  if (missing != s.written.end() || s.finished)
    return absl::InvalidArgumentError(
        fmt::format("piece {} was not written", missing - s.written.begin()));
  s.finished = true;
  for (const SavedFile file : kBoth) {
    if (s.out[file] == nullptr) continue;
    SLUICE_RETURN_IF_ERROR(s.out[file]->Sync());
    s.out[file].reset();
  }
  const std::string rows = TensorRows(s.part().tensors);
  s.text.tensors_checksum = ChecksumOf(rows);
  const std::string text = TextOf(s.text, s.part().rank == 0 ? rows : "");
  SLUICE_RETURN_IF_ERROR(WriteWhole(s.files, Join(s.path, PartName(s.part().rank)), BytesOf(text)));
  return s.files->SyncDirectory(s.path);
}

}  // namespace sluice
