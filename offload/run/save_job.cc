// How a run is saved: each rank what it keeps; of what all of them keep, its part.

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/checkpoint_job.h"
#include "offload/run/run_state.h"

namespace sluice {

namespace {

ConstMemoryView BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class SaveJob final : public CheckpointJob {
 public:
  SaveJob(const CheckpointSeams& seams, SaveRequest request, absl::Status ready,
          std::vector<int64_t> steps, const LossScaler& scaler, FrozenSaved* frozen, Done done)
      : CheckpointJob(seams, Hash(request)),
        request_(std::move(request)),
        ready_(std::move(ready)),
        steps_(std::move(steps)),
        run_state_(RunStateText(scaler.state())),
        frozen_(frozen),
        done_(std::move(done)) {}

  void Start() override;

 private:
  struct Chunk {
    ChunkIndex index;
    bool frozen;
    size_t first_piece;
    std::vector<ImagePart> parts;  // those that this rank saves
  };
  enum Phase : uint64_t { kBegun, kFinished, kCommitted };

  static uint64_t Hash(const SaveRequest& request) {
    return std::hash<std::string>()(request.place.tag) ^ request.place.id ^
           (request.without_frozen ? 0x5A5A : 0);
  }
  bool Saves(const ChunkLayout& chunk, const ImagePart& part) const;
  SavedPart TakePart();
  void SaveChunks();
  void OnRead(const Chunk& chunk, std::vector<std::byte>* image, const absl::Status& status);
  void Finish();
  void Commit();
  void GiveUp();

  const SaveRequest request_;
  const absl::Status ready_;
  const std::vector<int64_t> steps_;
  const std::string run_state_;
  FrozenSaved* const frozen_;
  bool linked_ = false;
  const Done done_;
  std::vector<Chunk> chunks_;
  size_t next_ = 0;
  std::unique_ptr<CheckpointWriter> writer_;
  absl::Status status_;  // of what this rank has done so far
};

// What every rank keeps whole is saved by one of them, whatever chunks it is in there.
bool SaveJob::Saves(const ChunkLayout& chunk, const ImagePart& part) const {
  const Sharding& sharding = layout().sharding();
  if (chunk.keep == Keep::kParam ? sharding.params : sharding.states) return true;
  const auto turn = static_cast<uint64_t>(part.tensor.value() + part.first / kPieceElementsMax);
  return turn % sharding.ranks == sharding.rank.value();
}

SavedPart SaveJob::TakePart() {
  const Sharding& sharding = layout().sharding();
  SavedPart part{.id = request_.place.id, .rank = sharding.rank.value(), .ranks = sharding.ranks};
  for (size_t t = 0; t < layout().tensors().size(); ++t) {
    const TensorLayout& tensor = layout().tensors()[t];
    if (tensor.keep == Keep::kParam && request_.without_frozen) {
      part.tensors.push_back(
          {.name = tensor.name, .elements = tensor.elements, .type = tensor.types.param});
      continue;
    }
    SavedTensor saved{.name = tensor.name,
                      .elements = tensor.elements,
                      .step = static_cast<uint64_t>(steps_[t]),
                      .type = tensor.types.param};
    for (const StateField& field : FieldsOf(*layout().format(), tensor.keep))
      saved.fields.emplace_back(field.name);
    part.tensors.push_back(std::move(saved));
  }
  for (uint32_t c = 0; c < layout().chunks().size(); ++c) {
    const ChunkLayout& chunk = layout().chunks()[c];
    if (chunk.keep == Keep::kParam && request_.without_frozen) continue;
    std::vector<ImagePart> parts = ImageParts(layout(), chunk);
    std::erase_if(parts, [&](const ImagePart& image) { return !Saves(chunk, image); });
    if (parts.empty()) continue;
    chunks_.push_back(
        {ChunkIndex(c), chunk.keep == Keep::kParam, part.pieces.size(), std::move(parts)});
    for (const ImagePart& image : chunks_.back().parts) {
      part.pieces.push_back({.tensor = image.tensor.value(),
                             .field = static_cast<uint32_t>(image.field),
                             .first = image.first,
                             .elements = image.elements});
    }
  }
  return part;
}

void SaveJob::Start() {
  auto begin = [this, files = seams().files, part = TakePart(),
                frozen = *frozen_]() mutable -> absl::Status {
    if (!ready_.ok()) return ready_;
    SLUICE_ASSIGN_OR_RETURN(
        writer_, CheckpointWriter::Begin(files, request_.place, std::move(part), frozen));
    return absl::OkStatus();
  };
  Do(std::move(begin), [this](const absl::Status& begun) {
    Vote(begun, kBegun, [this](const absl::Status& all) {
      status_ = all;
      if (!all.ok()) return GiveUp();
      linked_ = writer_->frozen_linked();
      if (linked_) std::erase_if(chunks_, [](const Chunk& c) { return c.frozen; });
      MakeImages();
      SaveChunks();
    });
  });
}

void SaveJob::SaveChunks() {
  while (status_.ok() && next_ < chunks_.size()) {
    std::vector<std::byte>* const image = TakeImage();
    if (image == nullptr) return;
    const Chunk& chunk = chunks_[next_++];
    AccessImage(
        chunk.index, image, /*write=*/false,
        [this, &chunk, image](const absl::Status& status) { OnRead(chunk, image, status); });
  }
  if (!any_under_way()) Finish();
}

void SaveJob::OnRead(const Chunk& chunk, std::vector<std::byte>* image,
                     const absl::Status& status) {
  const auto saved = [this, image](const absl::Status& written) {
    GiveImage(image);
    if (status_.ok()) status_ = written;
    GoesOn();
    SaveChunks();
  };
  if (!status.ok()) return saved(status);
  Do(
      [this, &chunk, image]() -> absl::Status {
        for (size_t i = 0; i < chunk.parts.size(); ++i) {
          const ImagePart& part = chunk.parts[i];
          SLUICE_RETURN_IF_ERROR(writer_->Write(chunk.first_piece + i,
                                                {image->data() + part.image_at, part.image_bytes}));
        }
        return absl::OkStatus();
      },
      saved);
}

void SaveJob::Finish() {
  auto finish = [this, attach = status_.ok()]() -> absl::Status {
    const std::unique_ptr<CheckpointWriter> writer = std::move(writer_);
    if (!attach) return absl::OkStatus();
    SLUICE_RETURN_IF_ERROR(writer->Attach(kRunStateFile, BytesOf(run_state_)));
    for (const auto& [name, bytes] : request_.attachments)
      SLUICE_RETURN_IF_ERROR(writer->Attach(name, BytesOf(bytes)));
    return writer->Finish();
  };
  Do(std::move(finish), [this](const absl::Status& finished) {
    if (status_.ok()) status_ = finished;
    Vote(status_, kFinished, [this](const absl::Status& all) {
      status_ = all;
      all.ok() ? Commit() : GiveUp();
    });
  });
}

// By the first rank, for all.
void SaveJob::Commit() {
  const auto end = [this](const absl::Status& committed) {
    Vote(committed, kCommitted, [this](const absl::Status& all) {
      status_ = all;
      if (!all.ok()) return GiveUp();
      if (!request_.without_frozen) {
        *frozen_ = {request_.place.directory + "/" + request_.place.tag,
                    linked_ ? frozen_->frozen_id : request_.place.id};
      }
      done_(all);
    });
  };
  if (!IsFirst()) return end(absl::OkStatus());
  Do([this,
      files = seams().files] { return CommitCheckpoint(files, request_.place, request_.latest); },
     end);
}

// All ranks have come to know that it failed, and write no more: what there is of it goes, by
// whichever rank. What failed before is what is told.
void SaveJob::GiveUp() {
  Do(
      [this, files = seams().files]() -> absl::Status {
        writer_.reset();
        (void)AbandonCheckpoint(files, request_.place);
        return absl::OkStatus();
      },
      [this](const absl::Status&) {
        done_(Annotate(status_, fmt::format("saving checkpoint '{}' in {}", request_.place.tag,
                                            request_.place.directory)));
      });
}

}  // namespace

std::shared_ptr<CheckpointJob> MakeSaveJob(const CheckpointSeams& seams, SaveRequest request,
                                           absl::Status ready, std::vector<int64_t> steps,
                                           const LossScaler& scaler, FrozenSaved* frozen,
                                           CheckpointJob::Done done) {
  return std::make_shared<SaveJob>(seams, std::move(request), std::move(ready), std::move(steps),
                                   scaler, frozen, std::move(done));
}

}  // namespace sluice
