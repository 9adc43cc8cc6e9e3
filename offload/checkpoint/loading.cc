#include "offload/checkpoint/loading.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/names.h"

namespace sluice {

namespace {

constexpr uint64_t kIndexBytesMax = uint64_t{1} << 28;
constexpr uint64_t kPartBytesMax = uint64_t{1} << 33;

// What is not there, where it should be, is lost.
absl::Status Lost(const absl::Status& status) {
  if (!absl::IsNotFound(status)) return status;
  return absl::DataLossError(status.message());
}

absl::Status CheckSize(Files* files, const std::string& path, uint64_t bytes) {
  const auto file = files->Open(path);
  if (!file.ok()) return Lost(file.status());
  if ((*file)->size() == bytes) return absl::OkStatus();
  return absl::DataLossError(fmt::format("{} has {} bytes instead of {}: it was {}", path,
                                         (*file)->size(), bytes,
                                         (*file)->size() < bytes ? "cut off" : "changed"));
}

bool HasOurs(Files* files, const std::string& path) {
  const auto names = files->List(path);
  return names.ok() && std::any_of(names->begin(), names->end(), IsOurs);
}

CheckpointSummary SummaryOf(Files* files, const std::string& path, uint64_t* sequence) {
  CheckpointSummary summary;
  const auto index = LoadIndex(files, path);
  if (!index.ok()) {
    summary.status = Lost(index.status());
    return summary;
  }
  *sequence = index->sequence;
  summary.id = index->id;
  summary.ranks = static_cast<uint32_t>(index->parts.size());
  summary.steps = index->steps;
  summary.saved_at = index->saved_at;
  for (const IndexText::Part& part : index->parts) summary.bytes += part.bytes;
  for (const IndexText::File& file : index->files) summary.bytes += file.bytes;
  summary.status = CheckSizes(files, path, *index);
  return summary;
}

}  // namespace

absl::StatusOr<IndexText> LoadIndex(Files* files, const std::string& path) {
  const std::string source = Join(path, kIndexName);
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadText(files, source, kIndexBytesMax));
  return ParseIndex(text, source);
}

absl::Status CheckSizes(Files* files, const std::string& path, const IndexText& index) {
  for (uint32_t rank = 0; rank < index.parts.size(); ++rank)
    SLUICE_RETURN_IF_ERROR(CheckSize(files, Join(path, PartName(rank)), index.parts[rank].bytes));
  for (const IndexText::File& file : index.files)
    SLUICE_RETURN_IF_ERROR(CheckSize(files, Join(path, file.name), file.bytes));
  return absl::OkStatus();
}

absl::StatusOr<PartText> LoadPart(Files* files, const std::string& path, const IndexText& index,
                                  uint32_t rank) {
  const std::string source = Join(path, PartName(rank));
  SLUICE_CHECK(rank < index.parts.size());
  const IndexText::Part& said = index.parts[rank];
  auto text = ReadText(files, source, kPartBytesMax);
  if (!text.ok()) return Lost(text.status());
  auto parsed = ParsePart(*text, source);
  if (!parsed.ok()) return parsed;
  const SavedPart& part = parsed->part;
  if (text->size() != said.bytes || ChecksumOf(*text) != said.checksum || part.id != index.id ||
      part.rank != rank || part.ranks != index.parts.size())
    return absl::DataLossError(
        fmt::format("{} is of another checkpoint or rank: {} is of save {:016x}, and this is rank "
                    "{} of save {:016x}",
                    source, kIndexName, index.id, part.rank, part.id));
  return parsed;
}

absl::StatusOr<PartLayout> LayOutLoaded(std::span<const SavedTensor> tensors, const PartText& part,
                                        const std::string& source) {
  auto layout = LayOut(tensors, part.part.pieces);
  if (!layout.ok())
    return absl::DataLossError(fmt::format("{}: {}", source, Message(layout.status())));
  for (size_t i = 0; i < kSavedFiles; ++i) {
    const bool none = i == kFrozen && layout->runs[i].empty();
    if (part.data[i].bytes != layout->bytes[i] || (part.data[i].header_bytes == 0) != none)
      return absl::DataLossError(fmt::format("{}: its files aren't what its pieces are", source));
  }
  return layout;
}

void AppendKeys(std::vector<PieceKey>* keys, const SavedPart& part) {
  for (uint32_t i = 0; i < part.pieces.size(); ++i) {
    const SavedPiece& piece = part.pieces[i];
    keys->push_back({piece.tensor, piece.field, piece.first, piece.elements, part.rank, i});
  }
}

absl::Status SortKeys(std::vector<PieceKey>* keys, std::span<const SavedTensor> tensors,
                      const std::string& source) {
  std::sort(keys->begin(), keys->end(), [](const PieceKey& a, const PieceKey& b) {
    return std::tie(a.tensor, a.field, a.first) < std::tie(b.tensor, b.field, b.first);
  });
  size_t i = 0;
  for (uint32_t t = 0; t < tensors.size(); ++t) {
    for (uint32_t f = 0; f < tensors[t].fields.size(); ++f) {
      int64_t end = 0;
      for (; i < keys->size() && (*keys)[i].tensor == t && (*keys)[i].field == f; ++i) {
        const PieceKey& key = (*keys)[i];
        if (key.first < end) {
          return absl::DataLossError(fmt::format(
              "{}: ranks {} and {} have both saved element {} of {}/{}", source,
              (*keys)[i - 1].rank, key.rank, key.first, tensors[t].name, tensors[t].fields[f]));
        }
        if (key.first > end) break;
        end += key.elements;
      }
      if (end != tensors[t].elements) {
        return absl::DataLossError(fmt::format("{}: no rank has saved element {} of {}/{}", source,
                                               end, tensors[t].name, tensors[t].fields[f]));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FoundCheckpoint>> FindCheckpoints(Files* files,
                                                             const std::string& directory) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> names, files->List(directory));
  std::vector<FoundCheckpoint> found;
  for (const std::string& name : names) {
    std::string tag = name;
    if (const std::optional<HiddenName> hidden = ParseHiddenName(name)) {
      const bool stands = hidden->kind == Hidden::kReplaced && CheckTag(hidden->tag).ok() &&
                          !std::binary_search(names.begin(), names.end(), hidden->tag);
      if (!stands) continue;
      tag = hidden->tag;
    }
    const std::string path = Join(directory, name);
    if (!CheckTag(tag).ok() || !files->IsDirectory(path) || !HasOurs(files, path)) continue;
    FoundCheckpoint checkpoint{.summary = {}, .path = path};
    checkpoint.summary = SummaryOf(files, path, &checkpoint.sequence);
    checkpoint.summary.tag = std::move(tag);
    found.push_back(std::move(checkpoint));
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const FoundCheckpoint& a, const FoundCheckpoint& b) {
                     return std::tuple(a.sequence, a.summary.saved_at, a.summary.id) >
                            std::tuple(b.sequence, b.summary.saved_at, b.summary.id);
                   });
  return found;
}

}  // namespace sluice
