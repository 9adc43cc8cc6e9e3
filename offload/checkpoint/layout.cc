#include "offload/checkpoint/layout.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/names.h"

namespace sluice {

namespace {

template <typename... T>
absl::Status Wrong(fmt::format_string<T...> what, T&&... of) {
  return absl::InvalidArgumentError(fmt::format(what, std::forward<T>(of)...));
}

bool IsWord(std::string_view text) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), fits);
}

absl::Status CheckTensor(const SavedTensor& tensor) {
  if (tensor.name.empty() || tensor.name.front() == '/' || tensor.name.back() == '/' ||
      tensor.name.size() > kSavedNameMax || !IsText(tensor.name))
    return Wrong("'{}' is no name of a tensor that can be saved", Shown(tensor.name));
  if (tensor.elements < 0 || tensor.elements > kSavedElementsMax)
    return Wrong("{}: {} elements can't be saved", tensor.name, tensor.elements);
  if (tensor.fields.size() > kSavedFieldsMax)
    return Wrong("{}: {} fields can't be saved", tensor.name, tensor.fields.size());
  for (size_t i = 0; i < tensor.fields.size(); ++i) {
    const std::string& field = tensor.fields[i];
    if (!IsWord(field)) return Wrong("{}: '{}' is no field's name", tensor.name, Shown(field));
    if (field == "param" && tensor.fields.size() > 1)
      return Wrong("{}: has states and frozen values", tensor.name);
    if (std::find(tensor.fields.begin(), tensor.fields.begin() + static_cast<int64_t>(i), field) !=
        tensor.fields.begin() + static_cast<int64_t>(i))
      return Wrong("{}: has two fields of name {}", tensor.name, field);
  }
  return absl::OkStatus();
}

absl::Status CheckPiece(std::span<const SavedTensor> tensors, const SavedPiece& piece) {
  if (piece.tensor >= tensors.size())
    return Wrong("a piece is of tensor {}, and there are {}", piece.tensor, tensors.size());
  const SavedTensor& tensor = tensors[piece.tensor];
  if (piece.field >= tensor.fields.size())
    return Wrong("{}: a piece is of field {}, and it has {}", tensor.name, piece.field,
                 tensor.fields.size());
  if (piece.first < 0 || piece.elements < 1 || piece.elements > kPieceElementsMax ||
      piece.first > tensor.elements - piece.elements)
    return Wrong("{}: a piece of {} elements from {} on isn't within its {}", tensor.name,
                 piece.elements, piece.first, tensor.elements);
  return absl::OkStatus();
}

std::string_view TypeName(const SavedTensor& tensor) {
  if (!IsFrozen(tensor)) return SafetensorsName(FloatType::kF32);
  return tensor.type.is_bytes() ? "U8" : SafetensorsName(tensor.type.floats());
}

}  // namespace

std::string_view SafetensorsName(FloatType type) {
  switch (type) {
    case FloatType::kBf16:
      return "BF16";
    case FloatType::kF16:
      return "F16";
    case FloatType::kF32:
      break;
  }
  return "F32";
}

int64_t ElementSize(const SavedTensor& tensor, uint32_t field) {
  return tensor.fields[field] == "param" ? tensor.type.size() : SizeOf(FloatType::kF32);
}

absl::Status CheckTensors(std::span<const SavedTensor> tensors) {
  if (tensors.size() >= UINT32_MAX) return Wrong("too many tensors");
  std::unordered_set<std::string_view> names;
  names.reserve(tensors.size());
  for (const SavedTensor& tensor : tensors) {
    SLUICE_RETURN_IF_ERROR(CheckTensor(tensor));
    if (!names.insert(tensor.name).second)
      return Wrong("two tensors have the name {}", tensor.name);
  }
  return absl::OkStatus();
}

absl::StatusOr<PartLayout> LayOut(std::span<const SavedTensor> tensors,
                                  std::span<const SavedPiece> pieces) {
  if (pieces.size() >= UINT32_MAX) return Wrong("too many pieces");
  PartLayout layout;
  layout.spots.resize(pieces.size());
  std::array<uint32_t, kSavedFiles> places{};
  for (size_t i = 0; i < pieces.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(CheckPiece(tensors, pieces[i]));
    PieceSpot& spot = layout.spots[i];
    spot.file = IsFrozen(tensors[pieces[i].tensor]) ? kFrozen : kTrained;
    spot.place = places[spot.file]++;
  }
  std::vector<uint32_t> order(pieces.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](uint32_t i) {
    const SavedPiece& piece = pieces[i];
    const int64_t size = ElementSize(tensors[piece.tensor], piece.field);
    return std::tuple(layout.spots[i].file, -size, piece.tensor, piece.field, piece.first);
  };
  const auto before = [&key](uint32_t a, uint32_t b) { return key(a) < key(b); };
  if (!std::is_sorted(order.begin(), order.end(), before))
    std::sort(order.begin(), order.end(), before);
  for (const uint32_t i : order) {
    const SavedPiece& piece = pieces[i];
    const SavedTensor& tensor = tensors[piece.tensor];
    const SavedFile file = layout.spots[i].file;
    std::vector<SavedRun>& runs = layout.runs[file];
    layout.spots[i].offset = layout.bytes[file];
    layout.bytes[file] += static_cast<uint64_t>(piece.elements * ElementSize(tensor, piece.field));
    if (layout.bytes[file] > uint64_t{1} << 60) return Wrong("more bytes than can be saved");
    if (!runs.empty() && runs.back().tensor == piece.tensor && runs.back().field == piece.field) {
      if (runs.back().end > piece.first)
        return Wrong("{}/{}: two pieces have element {}", tensor.name, tensor.fields[piece.field],
                     piece.first);
      if (runs.back().end == piece.first) {
        runs.back().end += piece.elements;
        continue;
      }
    }
    runs.push_back({piece.tensor, piece.field, piece.first, piece.first + piece.elements});
  }
  return layout;
}

std::string WithLength(std::string json) {
  constexpr size_t kLengthBytes = 8;
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string length(kLengthBytes, '\0');
  uint64_t rest = json.size();
  for (char& byte : length) {
    byte = static_cast<char>(rest & 255);
    rest >>= 8;
  }
  return length + json;
}

std::string SafetensorsHeader(std::span<const SavedTensor> tensors, const PartLayout& layout,
                              SavedFile file, uint64_t id, uint32_t rank) {
  std::string text = fmt::format(
      R"({{"__metadata__":{{"format":"pt","sluice_id":"{:016x}","sluice_rank":"{}"}})", id, rank);
  uint64_t offset = 0;
  for (const SavedRun& run : layout.runs[file]) {
    const SavedTensor& tensor = tensors[run.tensor];
    std::string name = tensor.name + '/' + tensor.fields[run.field];
    if (run.first != 0 || run.end != tensor.elements)
      name += fmt::format("/{}-{}", run.first, run.end);
    const int64_t elements = run.end - run.first;
    const uint64_t end = offset + static_cast<uint64_t>(elements * ElementSize(tensor, run.field));
    text += ',';
    AppendQuoted(&text, name);
    fmt::format_to(std::back_inserter(text),
                   R"(:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", TypeName(tensor),
                   elements, offset, end);
    offset = end;
  }
  text += '}';
  return WithLength(std::move(text));
}

}  // namespace sluice
