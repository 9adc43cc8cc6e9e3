// How a run is loaded: each rank reads what it keeps, from whichever ranks have saved it.

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/reader.h"
#include "offload/run/checkpoint_job.h"
#include "offload/run/run_state.h"
#include "optim/convert.h"

namespace sluice {

namespace {

// Where a field of a tensor comes from.
struct Source {
  uint32_t tensor = 0;  // of the checkpoint
  uint32_t field = 0;
  bool zero = false;                    // from nowhere: it begins as zeros
  std::optional<FloatType> converts{};  // it was saved in another type
  FloatType to = FloatType::kF32;
};

class LoadJob final : public CheckpointJob {
 public:
  LoadJob(const CheckpointSeams& seams, LoadRequest request, const std::vector<bool>& loaded,
          LossScaler* scaler, LoadCalls calls)
      : CheckpointJob(seams, Hash(request)),
        request_(std::move(request)),
        scaler_(scaler),
        calls_(std::move(calls)),
        loaded_(loaded) {}

  void Start() override;

 private:
  struct Wanted {
    std::string name;
    int64_t elements;
    Keep keep;
    ElementType type;
    std::vector<std::string> fields;
  };
  using Sources = std::vector<Source>;  // by field; empty: it isn't in the checkpoint

  enum Phase : uint64_t { kOpened, kWritten };

  static uint64_t Hash(const LoadRequest& request) {
    return 0x10AD ^ (request.without_states ? 0x100000 : 0) ^ (request.some ? 0x200000 : 0);
  }
  absl::Status Open();
  absl::StatusOr<Sources> Match(const Wanted& wanted, uint32_t index) const;
  bool Found(TensorIndex tensor) const { return !sources_[tensor.value()].empty(); }
  void LoadChunks();
  void Fill(ChunkIndex chunk, std::vector<ImagePart> parts, std::vector<std::byte>* image);
  absl::Status FillPart(const ImagePart& part, std::byte* to);
  void OnWritten(std::vector<std::byte>* image, const absl::Status& status);
  void End();

  const LoadRequest request_;
  LossScaler* const scaler_;
  const LoadCalls calls_;
  const std::vector<bool> loaded_;  // before
  std::vector<Wanted> wanted_;      // by tensor
  std::unique_ptr<CheckpointReader> reader_;
  std::vector<Sources> sources_;  // by tensor
  std::vector<uint64_t> steps_;   // by tensor
  LossScaler::State scale_{};
  std::vector<std::byte> unconverted_;
  uint32_t next_ = 0;
  absl::Status status_;
};

void LoadJob::Start() {
  for (const TensorLayout& tensor : layout().tensors()) {
    Wanted wanted{tensor.name, tensor.elements, tensor.keep, tensor.types.param, {}};
    for (const StateField& field : FieldsOf(*layout().format(), tensor.keep))
      wanted.fields.emplace_back(field.name);
    wanted_.push_back(std::move(wanted));
  }
  Do(
      [this, files = seams().files]() -> absl::Status {
        SLUICE_ASSIGN_OR_RETURN(reader_,
                                CheckpointReader::Open(files, request_.directory, request_.tag));
        return Open();
      },
      [this](const absl::Status& opened) {
        const absl::Status here = opened.ok() ? calls_.check() : opened;
        // Ranks may look at different disks, and choose different ones.
        const uint64_t id = opened.ok() ? reader_->summary().id : 0;
        Vote(here, kOpened + 2 * id, [this](const absl::Status& all) {
          if (!all.ok()) return calls_.done(all);
          calls_.chosen(reader_->path(), reader_->note());
          std::vector<bool> found;
          for (const Sources& sources : sources_) found.push_back(!sources.empty());
          calls_.begin(found);
          MakeImages();
          LoadChunks();
        });
      });
}

absl::Status LoadJob::Open() {
  std::unordered_map<std::string_view, uint32_t> saved;
  for (uint32_t i = 0; i < reader_->tensors().size(); ++i)
    saved.emplace(reader_->tensors()[i].name, i);
  sources_.resize(wanted_.size());
  steps_.resize(wanted_.size());
  for (size_t t = 0; t < wanted_.size(); ++t) {
    const Wanted& wanted = wanted_[t];
    const auto found = saved.find(wanted.name);
    if (found == saved.end() || reader_->tensors()[found->second].fields.empty()) {
      if (request_.some && loaded_[t]) continue;
      return absl::InvalidArgumentError(
          fmt::format("checkpoint {} has no tensor '{}' {}", reader_->path(), wanted.name,
                      request_.some ? ", which has no values yet either: write it first"
                                    : ": it can be loaded without what it lacks"));
    }
    SLUICE_ASSIGN_OR_RETURN(sources_[t], Match(wanted, found->second));
    const bool counts = wanted.keep != Keep::kParam && !request_.without_states;
    steps_[t] = counts ? reader_->tensors()[found->second].step : 0;
  }
  SLUICE_ASSIGN_OR_RETURN(const std::string text, reader_->Attachment(0, kRunStateFile));
  SLUICE_ASSIGN_OR_RETURN(scale_, ParseRunState(text));
  return absl::OkStatus();
}

// What was trained may be frozen now, and the other way round; only bytes are nothing else.
absl::StatusOr<LoadJob::Sources> LoadJob::Match(const Wanted& wanted, uint32_t index) const {
  const SavedTensor& saved = reader_->tensors()[index];
  const auto refuse = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        fmt::format("tensor '{}' {} in checkpoint {}", wanted.name, what, reader_->path()));
  };
  if (saved.elements != wanted.elements) {
    return refuse(fmt::format("has {} elements here and {}", wanted.elements, saved.elements));
  }
  if (saved.type.is_bytes() != wanted.type.is_bytes())
    return refuse(wanted.type.is_bytes() ? "is bytes here, and numbers"
                                         : "is numbers here, and bytes");
  const auto find = [&](std::string_view name) {
    return static_cast<uint32_t>(std::ranges::find(saved.fields, name) - saved.fields.begin());
  };
  const auto none = static_cast<uint32_t>(saved.fields.size());
  const uint32_t param = find("param");
  Sources sources;
  for (const std::string& name : wanted.fields) {
    const bool is_param = name == "param";
    Source source{.tensor = index, .field = find(name)};
    if (is_param && !wanted.type.is_bytes()) source.to = wanted.type.floats();
    const bool is_value = is_param || name == kMasterField.name;
    if (!is_value && (request_.without_states || (source.field == none && param != none))) {
      source.zero = true;
    } else if (source.field == none && is_value) {
      source.field = is_param ? find(kMasterField.name) : param;
    }
    if (!source.zero && source.field == none)
      return refuse(fmt::format("has {} here, and not", name));
    if (!source.zero && !wanted.type.is_bytes()) {
      const FloatType from = source.field == param ? saved.type.floats() : FloatType::kF32;
      if (from != source.to) source.converts = from;
    }
    sources.push_back(source);
  }
  return sources;
}

void LoadJob::LoadChunks() {
  while (status_.ok() && next_ < layout().chunks().size()) {
    const ChunkIndex chunk(next_);
    std::vector<ImagePart> parts = ImageParts(layout(), layout().chunk(chunk));
    const auto found = [this](const ImagePart& part) { return Found(part.tensor); };
    if (std::ranges::none_of(parts, found)) {
      ++next_;
      continue;
    }
    std::vector<std::byte>* const image = TakeImage();
    if (image == nullptr) return;
    ++next_;
    if (std::ranges::all_of(parts, found)) {
      Fill(chunk, std::move(parts), image);
      continue;
    }
    AccessImage(chunk, image, /*write=*/false,
                [this, chunk, image, parts = std::move(parts)](const absl::Status& read) {
                  read.ok() ? Fill(chunk, parts, image) : OnWritten(image, read);
                });
  }
  if (!any_under_way()) End();
}

void LoadJob::Fill(ChunkIndex chunk, std::vector<ImagePart> parts, std::vector<std::byte>* image) {
  Do(
      [this, image, parts = std::move(parts)]() -> absl::Status {
        for (const ImagePart& part : parts) {
          if (!Found(part.tensor)) continue;  // it stays as it was read
          SLUICE_RETURN_IF_ERROR(FillPart(part, image->data() + part.image_at));
        }
        return absl::OkStatus();
      },
      [this, chunk, image](const absl::Status& filled) {
        if (!filled.ok()) return OnWritten(image, filled);
        AccessImage(chunk, image, /*write=*/true,
                    [this, image](const absl::Status& status) { OnWritten(image, status); });
      });
}

absl::Status LoadJob::FillPart(const ImagePart& part, std::byte* to) {
  const Source& source = sources_[part.tensor.value()][part.field];
  if (source.zero) {
    std::memset(to, 0, part.image_bytes);
    return absl::OkStatus();
  }
  if (!source.converts) {
    return reader_->Read(source.tensor, source.field, part.first, part.elements,
                         {to, part.image_bytes});
  }
  unconverted_.resize(static_cast<size_t>(part.elements * SizeOf(*source.converts)));
  SLUICE_RETURN_IF_ERROR(
      reader_->Read(source.tensor, source.field, part.first, part.elements, unconverted_));
  Convert(unconverted_.data(), *source.converts, to, source.to, static_cast<size_t>(part.elements));
  return absl::OkStatus();
}

void LoadJob::OnWritten(std::vector<std::byte>* image, const absl::Status& status) {
  GiveImage(image);
  if (status_.ok()) status_ = status;
  GoesOn();
  LoadChunks();
}

void LoadJob::End() {
  Vote(status_, kWritten, [this](const absl::Status& all) {
    for (uint32_t t = 0; all.ok() && t < sources_.size(); ++t) {
      if (Found(TensorIndex(t))) calls_.loaded(TensorIndex(t), static_cast<int64_t>(steps_[t]));
    }
    if (all.ok() && !request_.without_states) scaler_->Restore(scale_);
    calls_.done(all);
  });
}

}  // namespace

std::shared_ptr<CheckpointJob> MakeLoadJob(const CheckpointSeams& seams, LoadRequest request,
                                           const std::vector<bool>& loaded, LossScaler* scaler,
                                           LoadCalls calls) {
  return std::make_shared<LoadJob>(seams, std::move(request), loaded, scaler, std::move(calls));
}

}  // namespace sluice
