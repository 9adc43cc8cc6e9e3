#include "tools/ckpt_export.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/names.h"
#include "optim/convert.h"
#include "tools/saved_shapes.h"

namespace sluice::tools {

namespace {

constexpr size_t kNone = ~size_t{0};

// A tensor of the result: of a field of the checkpoint's, or a buffer's bytes.
struct Weight {
  std::string name;
  std::string dtype;  // safetensors' name
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  int64_t element_size = 1;
  size_t tensor = kNone;  // of the checkpoint
  uint32_t field = 0;
  std::optional<std::pair<FloatType, FloatType>> convert;  // from and to; none: as it is
  size_t buffer = kNone;
};

std::string Header(const std::vector<Weight>& weights) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  uint64_t offset = 0;
  for (const Weight& weight : weights) {
    text += ',';
    AppendQuoted(&text, weight.name);
    text += fmt::format(R"(:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", weight.dtype,
                        fmt::join(weight.shape, ","), offset, offset + weight.bytes);
    offset += weight.bytes;
  }
  text += '}';
  return WithLength(std::move(text));
}

class Export {
 public:
  Export(Files* files, CheckpointReader* reader, const ExportOptions& options,
         const std::function<bool(uint64_t, uint64_t)>& progress)
      : files_(files), reader_(reader), options_(options), progress_(progress) {}

  absl::StatusOr<Exported> Run() {
    const absl::Status status = RunAll();
    if (status.ok()) return std::move(result_);
    for (const std::string& path : made_) (void)files_->Remove(path);
    return status;
  }

 private:
  absl::Status RunAll();
  absl::Status AddTensor(size_t tensor);
  absl::Status AddWeights();
  void Cut();
  absl::Status Write(OutputFile* to, const Weight& weight, uint64_t offset);
  absl::Status WriteShard(const std::string& name, std::vector<Weight>* weights);
  absl::Status WriteIndex();
  absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& name, uint64_t size);
  absl::Status GoOn(uint64_t more) {
    done_ += more;
    if (!progress_ || progress_(done_, result_.bytes)) return absl::OkStatus();
    return absl::CancelledError("stopped, and nothing of it is left");
  }
  std::string PathOf(const std::string& name) const { return Join(options_.out, name); }
  // Under which it is written; it gets its own once all are.
  static std::string Partial(const std::string& name) { return fmt::format(".{}.part", name); }

  Files* const files_;
  CheckpointReader* const reader_;
  const ExportOptions& options_;
  const std::function<bool(uint64_t, uint64_t)>& progress_;
  SavedShapes shapes_;
  std::vector<Weight> weights_;
  std::vector<std::vector<Weight>> shards_;
  std::vector<std::string> made_;  // paths
  std::vector<std::byte> from_, to_;
  uint64_t done_ = 0;
  Exported result_;
};

absl::Status Export::AddTensor(size_t index) {
  const SavedTensor& tensor = reader_->tensors()[index];
  const auto field = std::find_if(tensor.fields.begin(), tensor.fields.end(), [](const auto& name) {
    return name == "master" || name == "param";
  });
  if (field == tensor.fields.end()) {
    result_.left_out.push_back(tensor.name);
    return absl::OkStatus();
  }
  Weight weight{.name = tensor.name, .shape = {tensor.elements}, .tensor = index};
  weight.field = static_cast<uint32_t>(field - tensor.fields.begin());
  const auto said = shapes_.tensors.find(tensor.name);
  const bool has_shape = said != shapes_.tensors.end();
  weight.element_size = 1;
  weight.dtype = "U8";
  if (!tensor.type.is_bytes()) {
    const FloatType to = options_.type.value_or(tensor.type.floats());
    weight.convert = {*field == "param" ? tensor.type.floats() : FloatType::kF32, to};
    weight.element_size = SizeOf(to);
    weight.dtype = SafetensorsName(to);
  } else if (has_shape && !said->second.dtype.empty()) {
    weight.dtype = said->second.dtype;
    weight.element_size = SizeOfSafetensors(weight.dtype);
  }
  // Bytes are counted as elements of one byte.
  const int64_t counted = tensor.type.is_bytes() ? weight.element_size : 1;
  if (has_shape) {
    weight.shape = said->second.shape;
    if (ElementsOf(weight.shape) * counted != tensor.elements)
      return absl::InvalidArgumentError(
          fmt::format("model.json says that {} has shape [{}], and {} {} of it were saved",
                      Shown(tensor.name), fmt::join(weight.shape, ", "), tensor.elements,
                      tensor.type.is_bytes() ? "bytes" : "elements"));
  }
  weight.bytes = static_cast<uint64_t>(tensor.elements / counted * weight.element_size);
  weights_.push_back(std::move(weight));
  return absl::OkStatus();
}

absl::Status Export::AddWeights() {
  std::map<std::string_view, bool> names;
  for (size_t i = 0; i < reader_->tensors().size(); ++i) {
    names[reader_->tensors()[i].name] = true;
    SLUICE_RETURN_IF_ERROR(AddTensor(i));
  }
  // Empty ones are not the library's.
  for (const auto& [name, shape] : shapes_.tensors) {
    if (names.contains(name)) continue;
    if (ElementsOf(shape.shape) != 0 || shape.dtype.empty()) {
      result_.left_out.push_back(name);
      continue;
    }
    const bool is_float = shape.dtype == "F32" || shape.dtype == "BF16" || shape.dtype == "F16";
    const std::string dtype =
        is_float && options_.type ? std::string(SafetensorsName(*options_.type)) : shape.dtype;
    weights_.push_back({.name = name, .dtype = dtype, .shape = shape.shape});
  }
  for (size_t i = 0; i < shapes_.buffers.size(); ++i) {
    const SavedBuffer& buffer = shapes_.buffers[i];
    if (names.contains(buffer.name))
      return absl::InvalidArgumentError(fmt::format(
          "model.json says that {} is a buffer, and it is a tensor", Shown(buffer.name)));
    weights_.push_back({.name = buffer.name,
                        .dtype = buffer.shape.dtype,
                        .shape = buffer.shape.shape,
                        .bytes = buffer.bytes.size(),
                        .element_size = SizeOfSafetensors(buffer.shape.dtype),
                        .buffer = i});
  }
  return absl::OkStatus();
}

void Export::Cut() {
  const auto most = static_cast<uint64_t>(options_.shard_max.value());
  uint64_t bytes = 0;
  for (Weight& weight : weights_) {
    result_.bytes += weight.bytes;
    if (shards_.empty() || (bytes > 0 && bytes + weight.bytes > most)) {
      shards_.emplace_back();
      bytes = 0;
    }
    bytes += weight.bytes;
    shards_.back().push_back(std::move(weight));
  }
  result_.tensors = weights_.size();
  if (shards_.empty()) shards_.emplace_back();
}

absl::StatusOr<std::unique_ptr<OutputFile>> Export::Create(const std::string& name, uint64_t size) {
  const std::string path = PathOf(Partial(name));
  absl::Status stale = files_->Remove(path);  // of one that was killed
  if (!stale.ok() && !absl::IsNotFound(stale)) return stale;
  auto file = files_->Create(path, size);
  if (file.ok()) made_.push_back(path);
  return file;
}

absl::Status Export::Write(OutputFile* to, const Weight& weight, uint64_t offset) {
  if (weight.buffer != kNone) {
    const std::string& bytes = shapes_.buffers[weight.buffer].bytes;
    SLUICE_RETURN_IF_ERROR(to->Write(offset, std::as_bytes(std::span(bytes))));
    return GoOn(bytes.size());
  }
  if (weight.tensor == kNone) return absl::OkStatus();
  const SavedTensor& tensor = reader_->tensors()[weight.tensor];
  const int64_t size = ElementSize(tensor, weight.field);
  for (int64_t first = 0, n; first < tensor.elements; first += n) {
    n = std::min(kPieceElementsMax, tensor.elements - first);
    from_.resize(static_cast<size_t>(n * size));
    SLUICE_RETURN_IF_ERROR(
        reader_->Read(static_cast<uint32_t>(weight.tensor), weight.field, first, n, from_));
    if (weight.convert && weight.convert->first != weight.convert->second) {
      to_.resize(static_cast<size_t>(n * SizeOf(weight.convert->second)));
      Convert(from_.data(), weight.convert->first, to_.data(), weight.convert->second,
              static_cast<size_t>(n));
    } else {
      to_.swap(from_);
    }
    SLUICE_RETURN_IF_ERROR(to->Write(offset, to_));
    offset += to_.size();
    SLUICE_RETURN_IF_ERROR(GoOn(to_.size()));
  }
  return absl::OkStatus();
}

absl::Status Export::WriteShard(const std::string& name, std::vector<Weight>* weights) {
  // Wide types first, so that each lies at a multiple of its size.
  std::stable_sort(weights->begin(), weights->end(), [](const Weight& a, const Weight& b) {
    return a.element_size > b.element_size;
  });
  const std::string header = Header(*weights);
  uint64_t size = header.size();
  for (const Weight& weight : *weights) size += weight.bytes;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, Create(name, size));
  SLUICE_RETURN_IF_ERROR(file->Write(0, std::as_bytes(std::span(header))));
  uint64_t offset = header.size();
  for (const Weight& weight : *weights) {
    SLUICE_RETURN_IF_ERROR(Write(file.get(), weight, offset));
    offset += weight.bytes;
  }
  return file->Sync();
}

absl::Status Export::WriteIndex() {
  std::string text = fmt::format(
      "{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", result_.bytes);
  bool first = true;
  for (size_t i = 0; i < shards_.size(); ++i)
    for (const Weight& weight : shards_[i]) {
      text += first ? "\n    " : ",\n    ";
      first = false;
      AppendQuoted(&text, weight.name);
      text += fmt::format(": \"{}\"", result_.files[i]);
    }
  text += "\n  }\n}\n";
  result_.files.emplace_back("model.safetensors.index.json");
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file,
                          Create(result_.files.back(), text.size()));
  SLUICE_RETURN_IF_ERROR(file->Write(0, std::as_bytes(std::span(text))));
  return file->Sync();
}

absl::Status Export::RunAll() {
  SLUICE_ASSIGN_OR_RETURN(shapes_, ReadSavedShapes(reader_));
  result_.has_shapes = shapes_.there;
  result_.left_out = shapes_.left_out;
  SLUICE_RETURN_IF_ERROR(AddWeights());
  Cut();
  absl::Status made = files_->MakeDirectory(options_.out);
  if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> there, files_->List(options_.out));
  for (const std::string& name : there)
    if (name.starts_with("model") &&
        (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")))
      return absl::AlreadyExistsError(
          fmt::format("{} is there: give another directory, or remove it", PathOf(name)));
  const size_t count = shards_.size();
  for (size_t i = 0; i < count; ++i) {
    result_.files.push_back(count == 1
                                ? "model.safetensors"
                                : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, count));
    SLUICE_RETURN_IF_ERROR(WriteShard(result_.files.back(), &shards_[i]));
  }
  if (count > 1) SLUICE_RETURN_IF_ERROR(WriteIndex());
  for (const std::string& name : result_.files) {
    SLUICE_RETURN_IF_ERROR(files_->Rename(PathOf(Partial(name)), PathOf(name)));
    made_.push_back(PathOf(name));
  }
  return files_->SyncDirectory(options_.out);
}

}  // namespace

absl::StatusOr<Exported> ExportCheckpoint(
    Files* files, CheckpointReader* reader, const ExportOptions& options,
    const std::function<bool(uint64_t done, uint64_t all)>& progress) {
  return Export(files, reader, options, progress).Run();
}

}  // namespace sluice::tools
