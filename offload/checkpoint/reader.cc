#include "offload/checkpoint/reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <tuple>
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

constexpr size_t kPiecesKept = 4;

struct KeptPiece {
  uint32_t rank = 0;
  uint32_t piece = 0;
  uint64_t used = 0;  // 0: holds nothing
  std::vector<std::byte> bytes;
};

}  // namespace

struct CheckpointReader::State {
  Files* files;
  std::string directory;
  std::string path;
  std::string note;
  CheckpointSummary summary;
  std::vector<SavedTensor> tensors;
  std::vector<SavedPart> parts;
  std::vector<std::array<PartText::DataFile, kSavedFiles>> data;  // by rank
  std::vector<std::vector<PieceSpot>> spots;                      // by rank and piece
  std::vector<PieceKey> keys;                                     // sorted
  std::string open_path;
  std::unique_ptr<InputFile> open;
  std::array<KeptPiece, kPiecesKept> kept;
  uint64_t uses = 0;

  absl::Status Load();
  absl::StatusOr<const InputFile*> FileOf(const std::string& file);
  uint64_t BytesOf(const PieceKey& key) const {
    return static_cast<uint64_t>(key.elements * ElementSize(tensors[key.tensor], key.field));
  }
  absl::Status ReadPiece(const PieceKey& key, MemoryView to);
  absl::StatusOr<const KeptPiece*> Keep(const PieceKey& key);
  absl::Status CheckHeader(uint32_t rank, SavedFile file);
  absl::Status Failed(const absl::Status& status) const;
};

namespace {

// Those that can be loaded instead, for a message.
std::string Instead(const std::vector<FoundCheckpoint>& found, const std::string& not_tag) {
  for (const FoundCheckpoint& other : found)
    if (other.summary.status.ok() && other.summary.tag != not_tag)
      return fmt::format("; '{}' of {} steps can be loaded instead", other.summary.tag,
                         other.summary.steps);
  return "; there is no other that can be loaded";
}

std::string TagsOf(const std::vector<FoundCheckpoint>& found) {
  constexpr size_t kMost = 10;
  std::string tags;
  for (size_t i = 0; i < std::min(found.size(), kMost); ++i)
    tags += (i == 0 ? "" : ", ") + found[i].summary.tag;
  return found.size() > kMost ? tags + ", ..." : tags;
}

// What `latest` says; empty: nothing that could be a tag.
std::string ReadLatest(Files* files, const std::string& directory) {
  auto text = ReadText(files, Join(directory, kLatest), kTagMax + 16);
  if (!text.ok()) return "";
  while (!text->empty() && (text->back() == '\n' || text->back() == '\r' || text->back() == ' '))
    text->pop_back();
  return CheckTag(*text).ok() ? *text : "";
}

}  // namespace

absl::Status CheckpointReader::State::Load() {
  SLUICE_ASSIGN_OR_RETURN(const IndexText index, LoadIndex(files, path));
  SLUICE_RETURN_IF_ERROR(CheckSizes(files, path, index));
  const auto ranks = static_cast<uint32_t>(index.parts.size());
  uint64_t checksum = 0;
  std::vector<std::pair<std::string, uint64_t>> expected;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    const std::string source = Join(path, PartName(rank));
    SLUICE_ASSIGN_OR_RETURN(PartText text, LoadPart(files, path, index, rank));
    if (rank == 0) {
      tensors = std::move(text.part.tensors);
      text.part.tensors.clear();
      checksum = text.tensors_checksum;
    }
    if (text.tensors_checksum != checksum)
      return absl::DataLossError(fmt::format("{} is of another model than rank 0's", source));
    SLUICE_ASSIGN_OR_RETURN(PartLayout layout, LayOutLoaded(tensors, text, source));
    for (const SavedFile file : {kTrained, kFrozen})
      if (text.data[file].header_bytes > 0)
        expected.emplace_back(DataName(rank, file), text.data[file].size());
    for (const SavedPart::Attachment& attachment : text.part.attachments)
      expected.emplace_back(AttachmentFile(rank, attachment.name), attachment.bytes);
    AppendKeys(&keys, text.part);
    spots.push_back(std::move(layout.spots));
    data.push_back(text.data);
    parts.push_back(std::move(text.part));
  }
  const auto same = [](const IndexText::File& a, const std::pair<std::string, uint64_t>& b) {
    return a.name == b.first && a.bytes == b.second;
  };
  if (!std::equal(index.files.begin(), index.files.end(), expected.begin(), expected.end(), same))
    return absl::DataLossError(
        fmt::format("{}: its files aren't those of its parts", Join(path, kIndexName)));
  SLUICE_RETURN_IF_ERROR(SortKeys(&keys, tensors, path));
  summary.id = index.id;
  summary.ranks = ranks;
  summary.steps = index.steps;
  summary.saved_at = index.saved_at;
  for (const IndexText::Part& part : index.parts) summary.bytes += part.bytes;
  for (const IndexText::File& file : index.files) summary.bytes += file.bytes;
  return absl::OkStatus();
}

absl::StatusOr<const InputFile*> CheckpointReader::State::FileOf(const std::string& file) {
  if (open == nullptr || open_path != file) {
    open.reset();
    auto opened = files->Open(file);
    if (!opened.ok()) return absl::DataLossError(opened.status().message());
    open = *std::move(opened);
    open_path = file;
  }
  return open.get();
}

absl::Status CheckpointReader::State::ReadPiece(const PieceKey& key, MemoryView to) {
  const PieceSpot& spot = spots[key.rank][key.piece];
  const std::string file = Join(path, DataName(key.rank, spot.file));
  SLUICE_ASSIGN_OR_RETURN(const InputFile* const in, FileOf(file));
  SLUICE_RETURN_IF_ERROR(in->Read(data[key.rank][spot.file].header_bytes + spot.offset, to));
  const SavedPart& part = parts[key.rank];
  if (SeededChecksum(to, BlockIndex(spot.place), IdOf(part, spot.file)) ==
      part.checksums[key.piece])
    return absl::OkStatus();
  return absl::DataLossError(fmt::format(
      "{} is damaged: elements {} to {} of {}/{} are not what was saved", file, key.first,
      key.first + key.elements, tensors[key.tensor].name, tensors[key.tensor].fields[key.field]));
}

absl::StatusOr<const KeptPiece*> CheckpointReader::State::Keep(const PieceKey& key) {
  KeptPiece* oldest = kept.data();
  for (KeptPiece& piece : kept) {
    if (piece.used > 0 && piece.rank == key.rank && piece.piece == key.piece) {
      piece.used = ++uses;
      return &piece;
    }
    if (piece.used < oldest->used) oldest = &piece;
  }
  oldest->used = 0;
  oldest->bytes.resize(BytesOf(key));
  SLUICE_RETURN_IF_ERROR(ReadPiece(key, oldest->bytes));
  oldest->rank = key.rank;
  oldest->piece = key.piece;
  oldest->used = ++uses;
  return oldest;
}

absl::Status CheckpointReader::State::CheckHeader(uint32_t rank, SavedFile file) {
  const PartText::DataFile& of = data[rank][file];
  if (of.header_bytes == 0) return absl::OkStatus();
  const std::string name = Join(path, DataName(rank, file));
  SLUICE_ASSIGN_OR_RETURN(const InputFile* const in, FileOf(name));
  std::string header(std::min(of.header_bytes, in->size()), '\0');
  SLUICE_RETURN_IF_ERROR(in->Read(0, std::as_writable_bytes(std::span(header))));
  if (ChecksumOf(header) == of.header_checksum) return absl::OkStatus();
  return absl::DataLossError(
      fmt::format("{} is damaged: its safetensors header is not what was saved", name));
}

absl::Status CheckpointReader::State::Failed(const absl::Status& status) const {
  if (!absl::IsDataLoss(status)) return status;
  const auto found = FindCheckpoints(files, directory);
  if (!found.ok()) return status;
  return absl::DataLossError(fmt::format("{}{}", Message(status), Instead(*found, summary.tag)));
}

CheckpointReader::CheckpointReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointReader::~CheckpointReader() = default;
const std::string& CheckpointReader::path() const { return state_->path; }
const std::string& CheckpointReader::note() const { return state_->note; }
const CheckpointSummary& CheckpointReader::summary() const { return state_->summary; }
std::span<const SavedTensor> CheckpointReader::tensors() const { return state_->tensors; }
const std::vector<SavedPart>& CheckpointReader::parts() const { return state_->parts; }

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(
    Files* files, const std::string& directory, const std::string& tag) {
  const auto found = FindCheckpoints(files, directory);
  if (!found.ok()) return Annotate(found.status(), "no checkpoint can be loaded");
  const auto load =
      [&](const FoundCheckpoint& from) -> absl::StatusOr<std::unique_ptr<CheckpointReader>> {
    auto state = std::make_unique<State>();
    state->files = files;
    state->directory = directory;
    state->path = from.path;
    state->summary.tag = from.summary.tag;
    SLUICE_RETURN_IF_ERROR(state->Load());
    return std::unique_ptr<CheckpointReader>(new CheckpointReader(std::move(state)));
  };
  const auto find = [&found](const std::string& name) {
    return std::find_if(found->begin(), found->end(),
                        [&](const FoundCheckpoint& one) { return one.summary.tag == name; });
  };
  if (found->empty())
    return absl::NotFoundError(fmt::format("there is no checkpoint in {}", directory));
  if (!tag.empty()) {
    const auto named = find(tag);
    if (named == found->end())
      return absl::NotFoundError(fmt::format("there is no checkpoint '{}' in {}; there are: {}",
                                             Shown(tag), directory, TagsOf(*found)));
    auto loaded = load(*named);
    if (loaded.ok()) return loaded;
    return absl::Status(loaded.status().code(),
                        fmt::format("{}{}", Message(loaded.status()), Instead(*found, tag)));
  }
  const std::string latest = ReadLatest(files, directory);
  std::string note = latest.empty()
                         ? fmt::format("{} names no checkpoint", Join(directory, kLatest))
                         : fmt::format("'{}' names {}, which is not there", kLatest, latest);
  absl::Status first;
  std::vector<const FoundCheckpoint*> order;
  const auto named = find(latest);
  if (named != found->end()) order.push_back(&*named);
  for (const FoundCheckpoint& other : *found)
    if (named == found->end() || &other != &*named) order.push_back(&other);
  for (const FoundCheckpoint* const one : order) {
    auto loaded = load(*one);
    const bool is_named = named != found->end() && one == &*named;
    if (loaded.ok()) {
      if (!is_named)
        (*loaded)->state_->note =
            fmt::format("{}; '{}' is loaded, the newest that can be", note, one->summary.tag);
      return loaded;
    }
    if (first.ok()) first = loaded.status();
    if (is_named)
      note = fmt::format("'{}' names {}, which can't be loaded ({})", kLatest, latest,
                         Message(loaded.status()));
  }
  return absl::Status(first.code(),
                      fmt::format("{}; there is no other that can be loaded", Message(first)));
}

absl::Status CheckpointReader::Read(uint32_t tensor, uint32_t field, int64_t first,
                                    int64_t elements, MemoryView to) {
  State& s = *state_;
  if (tensor >= s.tensors.size() || field >= s.tensors[tensor].fields.size() || first < 0 ||
      elements < 0 || first > s.tensors[tensor].elements ||
      elements > s.tensors[tensor].elements - first)
    return absl::InvalidArgumentError("what is to be read is not in the checkpoint");
  const auto size = static_cast<size_t>(ElementSize(s.tensors[tensor], field));
  if (to.size() != static_cast<size_t>(elements) * size)
    return absl::InvalidArgumentError("what is read does not fit where it is to go");
  const int64_t end = first + elements;
  auto key = std::upper_bound(s.keys.begin(), s.keys.end(), std::tuple(tensor, field, first),
                              [](const auto& place, const PieceKey& a) {
                                return place < std::tuple(a.tensor, a.field, a.first);
                              });
  if (key != s.keys.begin()) --key;
  while (first < end) {
    if (key != s.keys.end() && key->tensor == tensor && key->field == field &&
        key->first + key->elements <= first)
      ++key;
    if (key == s.keys.end() || key->tensor != tensor || key->field != field || key->first > first)
      return absl::NotFoundError(fmt::format("{} does not hold element {} of {}/{}", s.path, first,
                                             s.tensors[tensor].name,
                                             s.tensors[tensor].fields[field]));
    const int64_t n = std::min(end, key->first + key->elements) - first;
    const MemoryView part = to.first(static_cast<size_t>(n) * size);
    if (n == key->elements) {
      const absl::Status read = s.ReadPiece(*key, part);
      if (!read.ok()) return s.Failed(read);
    } else {
      const auto piece = s.Keep(*key);
      if (!piece.ok()) return s.Failed(piece.status());
      std::memcpy(part.data(),
                  (*piece)->bytes.data() + static_cast<size_t>(first - key->first) * size,
                  part.size());
    }
    to = to.subspan(part.size());
    first += n;
    ++key;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckpointReader::Attachment(uint32_t rank, const std::string& name) {
  State& s = *state_;
  if (rank >= s.parts.size())
    return absl::NotFoundError(fmt::format("{} has no rank {}", s.path, rank));
  const std::vector<SavedPart::Attachment>& all = s.parts[rank].attachments;
  for (uint32_t i = 0; i < all.size(); ++i) {
    if (all[i].name != name) continue;
    const std::string path = Join(s.path, AttachmentFile(rank, name));
    auto text = ReadText(s.files, path, all[i].bytes);
    if (absl::IsNotFound(text.status()))
      return s.Failed(absl::DataLossError(text.status().message()));
    if (!text.ok()) return s.Failed(text.status());
    if (text->size() != all[i].bytes ||
        SeededChecksum(std::as_bytes(std::span(*text)), BlockIndex(i), s.parts[rank].id) !=
            all[i].checksum)
      return s.Failed(absl::DataLossError(fmt::format("{} is not what was saved", path)));
    return text;
  }
  return absl::NotFoundError(
      fmt::format("rank {} has attached nothing of name {} to {}", rank, Shown(name), s.path));
}

absl::Status CheckpointReader::Verify(const std::function<bool(uint64_t)>& progress) {
  State& s = *state_;
  uint64_t bytes = 0;
  const auto went_on = [&](uint64_t more) {
    bytes += more;
    return !progress || progress(bytes) ? absl::OkStatus()
                                        : absl::CancelledError("stopped by the caller");
  };
  // In the order of the files, not of the tensors.
  std::vector<uint32_t> order(s.keys.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto place = [&s](uint32_t i) {
    const PieceKey& key = s.keys[i];
    const PieceSpot& spot = s.spots[key.rank][key.piece];
    return std::tuple(key.rank, spot.file, spot.offset);
  };
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return place(a) < place(b); });
  auto next = order.begin();
  std::vector<std::byte> buffer;
  for (uint32_t rank = 0; rank < s.parts.size(); ++rank) {
    for (const SavedFile file : {kTrained, kFrozen}) {
      const absl::Status header = s.CheckHeader(rank, file);
      if (!header.ok()) return s.Failed(header);
      SLUICE_RETURN_IF_ERROR(went_on(s.data[rank][file].header_bytes));
      for (; next != order.end() && s.keys[*next].rank == rank &&
             s.spots[rank][s.keys[*next].piece].file == file;
           ++next) {
        buffer.resize(s.BytesOf(s.keys[*next]));
        const absl::Status read = s.ReadPiece(s.keys[*next], buffer);
        if (!read.ok()) return s.Failed(read);
        SLUICE_RETURN_IF_ERROR(went_on(buffer.size()));
      }
    }
    for (const SavedPart::Attachment& attachment : s.parts[rank].attachments) {
      SLUICE_RETURN_IF_ERROR(Attachment(rank, attachment.name).status());
      SLUICE_RETURN_IF_ERROR(went_on(attachment.bytes));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CheckpointSummary>> ListCheckpoints(Files* files,
                                                               const std::string& directory) {
  SLUICE_ASSIGN_OR_RETURN(std::vector<FoundCheckpoint> found, FindCheckpoints(files, directory));
  std::vector<CheckpointSummary> summaries;
  summaries.reserve(found.size());
  for (FoundCheckpoint& one : found) summaries.push_back(std::move(one.summary));
  return summaries;
}

}  // namespace sluice
