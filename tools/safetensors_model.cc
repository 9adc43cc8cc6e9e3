#include "tools/safetensors_model.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file_bytes.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/spec_builder.h"

namespace sluice::tools {

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kHeaderBytesMax = 100'000'000;  // safetensors' own limit
constexpr std::string_view kIndexEnd = ".safetensors.index.json";
constexpr std::string_view kMetadata = "__metadata__";

template <typename... T>
absl::Status Wrong(const std::string& source, fmt::format_string<T...> what, T&&... of) {
  return absl::InvalidArgumentError(
      fmt::format("{}: {}", source, fmt::format(what, std::forward<T>(of)...)));
}

bool IsFloat(std::string_view type) { return type.starts_with('F') || type == "BF16"; }

// How many elements it has, exact where they can be planned. Then it has a dtype, too.
absl::StatusOr<double> ElementsOf(const std::string& name, const SortedJson& entry,
                                  const std::string& source) {
  const bool has_type = entry.is_object() && entry.contains("dtype") && entry["dtype"].is_string();
  if (!has_type || !entry.contains("shape") || !entry["shape"].is_array())
    return Wrong(source, "{}: has no dtype and shape", name);
  double elements = 1;
  for (const SortedJson& size : entry["shape"]) {
    if (!size.is_number_unsigned()) return Wrong(source, "{}: its shape is no sizes", name);
    elements *= static_cast<double>(size.get<uint64_t>());
  }
  return elements;
}

// "model.layers.3" of "model.layers.3.mlp.weight"; without a number, all but the last word.
std::string UnitOf(const std::string& name) {
  size_t begin = 0;
  while (begin < name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view word = std::string_view(name).substr(begin, end - begin);
    if (!word.empty() && word.find_first_not_of("0123456789") == std::string_view::npos)
      return name.substr(0, end);
    begin = end + 1;
  }
  const size_t last = name.rfind('.');
  return last == std::string::npos ? name : name.substr(0, last);
}

absl::StatusOr<SortedJson> ReadHeader(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string start, ReadBytes(path, 0, kLengthBytes));
  uint64_t length = 0;  // little-endian
  for (size_t i = start.size(); i > 0; --i)
    length = length << 8 | static_cast<unsigned char>(start[i - 1]);
  if (start.size() < kLengthBytes || length < 2 || length > kHeaderBytesMax)
    return Wrong(path, "is not a safetensors file: it does not begin with the size of a header");
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadBytes(path, kLengthBytes, length));
  if (text.size() < length)
    return Wrong(path, "is not a whole safetensors file: its header is cut off");
  return ParseSortedObject(text, fmt::format("{}: the header", path));
}

absl::StatusOr<SortedJson> ReadIndex(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadBytes(path, 0, kHeaderBytesMax));
  SLUICE_ASSIGN_OR_RETURN(const SortedJson index, ParseSortedObject(text, path));
  if (!index.contains("weight_map") || !index["weight_map"].is_object())
    return Wrong(path, "weight_map: must be an object");
  const SortedJson& names = index["weight_map"];
  std::set<std::string> files;
  for (const auto& [name, file] : names.items()) {
    if (!file.is_string()) return Wrong(path, "weight_map: {}: must be a file's name", name);
    files.insert(file.get<std::string>());
  }
  const std::string directory = path.substr(0, path.rfind('/') + 1);  // or none
  SortedJson all = SortedJson::object();
  for (const std::string& file : files) {
    if (file.empty() || file.find('/') != std::string::npos || file.starts_with('.'))
      return Wrong(path, "weight_map: '{}' is no file of its directory", file);
    SLUICE_ASSIGN_OR_RETURN(const SortedJson header, ReadHeader(directory + file));
    for (const auto& [name, entry] : header.items()) {
      if (name == kMetadata) continue;
      if (all.contains(name)) return Wrong(path, "{} is in {} and in another file", name, file);
      all[name] = entry;
    }
  }
  for (const auto& [name, file] : names.items()) {
    if (!all.contains(name))
      return Wrong(path, "weight_map: {} is not in {}", name, file.get<std::string>());
  }
  return all;
}

}  // namespace

bool IsSafetensors(const std::string& path) {
  return path.ends_with(".safetensors") || path.ends_with(kIndexEnd);
}

absl::StatusOr<SortedJson> ReadSafetensors(const std::string& path) {
  return path.ends_with(kIndexEnd) ? ReadIndex(path) : ReadHeader(path);
}

absl::StatusOr<HfModel> ModelOfSafetensors(const SortedJson& header, const std::string& source) {
  struct Entry {
    std::string name;
    int64_t elements;
  };
  std::vector<std::pair<std::string, std::vector<Entry>>> units;  // as they come
  std::map<std::string, size_t> places;
  double total = 0, not_counted = 0;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) continue;
    SLUICE_ASSIGN_OR_RETURN(const double elements, ElementsOf(name, entry, source));
    if (!IsFloat(entry["dtype"].get<std::string>())) {
      not_counted += elements;
      continue;
    }
    total += elements;
    if (!(total <= static_cast<double>(kParamsMax)))
      return Wrong(source, "at most 16T parameters can be planned");
    if (elements == 0) continue;
    const std::string unit = UnitOf(name);
    const auto [place, is_new] = places.try_emplace(unit, units.size());
    if (is_new) units.push_back({unit, {}});
    units[place->second].second.push_back({name, static_cast<int64_t>(elements)});
  }
  if (units.empty()) return Wrong(source, "holds no parameters");
  SpecBuilder builder;
  for (const auto& [unit, tensors] : units) {
    builder.Unit(unit);
    for (const Entry& tensor : tensors)
      builder.Tensor(tensor.name.substr(std::min(tensor.name.size(), unit.size() + 1)),
                     {tensor.elements});
  }
  std::string description = "as the safetensors header says";
  if (not_counted > 0)
    description += fmt::format(", without {:.0f} values that are no floats", not_counted);
  return HfModel{.spec = builder.Take(), .description = std::move(description)};
}

std::string TypeOfSafetensors(const SortedJson& header) {
  std::map<std::string, double> sums;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) continue;
    const absl::StatusOr<double> elements = ElementsOf(name, entry, "");
    if (!elements.ok()) continue;
    const auto type = entry["dtype"].get<std::string>();
    if (IsFloat(type)) sums[type] += *elements;
  }
  const auto most = std::max_element(
      sums.begin(), sums.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == sums.end()) return "";
  if (most->first == "BF16") return "bf16";
  if (most->first == "F16") return "fp16";
  return most->first == "F32" ? "fp32" : "";
}

}  // namespace sluice::tools
