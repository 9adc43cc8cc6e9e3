#include "tools/saved_shapes.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/names.h"
#include "tools/json_file.h"

namespace sluice::tools {

namespace {

constexpr std::string_view kModel = "model.json";
constexpr std::string_view kRun = "run.safetensors";
constexpr size_t kLengthBytes = 8;

struct Type {
  std::string_view torch;
  std::string_view safetensors;
  int64_t size;
};
constexpr Type kTypes[] = {
    {"float32", "F32", 4},
    {"bfloat16", "BF16", 2},
    {"float16", "F16", 2},
    {"float64", "F64", 8},
    {"int64", "I64", 8},
    {"int32", "I32", 4},
    {"int16", "I16", 2},
    {"int8", "I8", 1},
    {"uint8", "U8", 1},
    {"bool", "BOOL", 1},
    {"uint16", "U16", 2},
    {"uint32", "U32", 4},
    {"uint64", "U64", 8},
    {"float8_e4m3fn", "F8_E4M3", 1},
    {"float8_e5m2", "F8_E5M2", 1},
};

absl::Status Wrong(const std::string& source, std::string_view name, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}: {}", source, Shown(name), what));
}

absl::StatusOr<SavedShape> ShapeOf(const SortedJson& entry, const std::string& source,
                                   std::string_view name) {
  if (!entry.is_object() || !entry.contains("shape") || !entry["shape"].is_array())
    return Wrong(source, name, "has no shape");
  SavedShape shape;
  for (const SortedJson& size : entry["shape"]) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > kSavedElementsMax)
      return Wrong(source, name, "its shape is no sizes");
    shape.shape.push_back(size.get<int64_t>());
  }
  if (ElementsOf(shape.shape) < 0) return Wrong(source, name, "its shape is too large");
  if (entry.contains("dtype") && entry["dtype"].is_string()) {
    const auto dtype = entry["dtype"].get<std::string>();
    for (const Type& type : kTypes)
      if (dtype == type.torch) shape.dtype = type.safetensors;
  }
  return shape;
}

// What tensor `at` of the file holds; empty: it isn't there, or isn't what the shape says.
std::string ValuesIn(const std::string& run, const SortedJson& header, size_t begin, uint64_t at,
                     const SavedShape& shape) {
  const auto found = header.find(fmt::format("{}", at));
  if (found == header.end() || !found->is_object()) return "";
  const auto is = [&](const char* key, const SortedJson& json) {
    const auto at = found->find(key);
    return at != found->end() && *at == json;
  };
  if (!is("dtype", shape.dtype) || !is("shape", shape.shape)) return "";
  const auto offsets = found->find("data_offsets");
  const auto is_whole = [](const SortedJson& json) { return json.is_number_unsigned(); };
  if (offsets == found->end() || !offsets->is_array() || offsets->size() != 2 ||
      !std::all_of(offsets->begin(), offsets->end(), is_whole))
    return "";
  const auto first = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  const auto bytes =
      static_cast<uint64_t>(ElementsOf(shape.shape) * SizeOfSafetensors(shape.dtype));
  if (first > end || end > run.size() - begin || end - first != bytes) return "";
  return run.substr(begin + first, bytes);
}

absl::Status AddBuffers(const SortedJson& buffers, const std::string& run,
                        const std::string& source, SavedShapes* shapes) {
  uint64_t length = 0;  // little-endian
  for (size_t i = std::min(run.size(), kLengthBytes); i > 0; --i)
    length = length << 8 | static_cast<unsigned char>(run[i - 1]);
  if (run.size() < kLengthBytes || length > run.size() - kLengthBytes)
    return absl::InvalidArgumentError(fmt::format("{} is cut off, and has buffers", kRun));
  SLUICE_ASSIGN_OR_RETURN(const SortedJson header,
                          ParseSortedObject(run.substr(kLengthBytes, length), std::string(kRun)));
  for (const auto& [name, entry] : buffers.items()) {
    SavedBuffer buffer{.name = name};
    SLUICE_ASSIGN_OR_RETURN(buffer.shape, ShapeOf(entry, source, name));
    if (buffer.shape.dtype.empty()) {
      shapes->left_out.push_back(name);
      continue;
    }
    const auto at = entry.find("at");
    if (at == entry.end() || !at->is_number_unsigned())
      return Wrong(source, name, "is a buffer of which it can't be said where it is");
    buffer.bytes = ValuesIn(run, header, kLengthBytes + length, at->get<uint64_t>(), buffer.shape);
    if (buffer.bytes.empty() && ElementsOf(buffer.shape.shape) > 0)
      return Wrong(source, name, fmt::format("is not in {} as it is said to be", kRun));
    if (shapes->tensors.contains(name)) return Wrong(source, name, "is a buffer and a tensor");
    shapes->buffers.push_back(std::move(buffer));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t SizeOfSafetensors(std::string_view dtype) {
  for (const Type& type : kTypes)
    if (dtype == type.safetensors) return type.size;
  return 0;
}

int64_t ElementsOf(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) {
    if (size == 0) return 0;
    if (elements > kSavedElementsMax / size) return -1;
    elements *= size;
  }
  return elements;
}

absl::StatusOr<SavedShapes> ParseSavedShapes(const std::string& model, const std::string& run,
                                             const std::string& source) {
  SLUICE_ASSIGN_OR_RETURN(const SortedJson json, ParseSortedObject(model, source));
  if (!json.contains("tensors") || !json["tensors"].is_object())
    return absl::InvalidArgumentError(fmt::format("{} has no tensors", source));
  SavedShapes shapes{.there = true};
  for (const auto& [name, entry] : json["tensors"].items()) {
    SLUICE_ASSIGN_OR_RETURN(shapes.tensors[name], ShapeOf(entry, source, name));
  }
  const auto buffers = json.find("buffers");
  if (buffers == json.end() || buffers->empty()) return shapes;
  if (!buffers->is_object())
    return absl::InvalidArgumentError(fmt::format("{}: its buffers are no object", source));
  SLUICE_RETURN_IF_ERROR(AddBuffers(*buffers, run, source, &shapes));
  return shapes;
}

absl::StatusOr<SavedShapes> ReadSavedShapes(CheckpointReader* reader) {
  const auto model = reader->Attachment(0, std::string(kModel));
  if (absl::IsNotFound(model.status())) return SavedShapes();
  if (!model.ok()) return model.status();
  auto run = reader->Attachment(0, std::string(kRun));
  if (!run.ok() && !absl::IsNotFound(run.status())) return run.status();
  return ParseSavedShapes(*model, run.ok() ? *run : "",
                          Join(reader->path(), AttachmentFile(0, kModel)));
}

}  // namespace sluice::tools
