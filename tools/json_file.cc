#include "tools/json_file.h"

#include <cmath>
#include <utility>

#include "core/file_bytes.h"
#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

constexpr size_t kBytesMax = size_t{16} << 20;
constexpr int kDepthMax = 100;
constexpr double kWholeMax = 1e15;

std::string Shown(const Json& value) {
  std::string text = Text(value);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

template <typename J>
absl::StatusOr<J> Parse(const std::string& text, const std::string& source) {
  bool too_deep = false;
  const auto keep = [&too_deep](int depth, typename J::parse_event_t, const J&) {
    too_deep = too_deep || depth > kDepthMax;
    return !too_deep;
  };
  J json = J::parse(text, keep, /*allow_exceptions=*/false, /*ignore_comments=*/true);
  if (too_deep) {
    return absl::InvalidArgumentError(fmt::format("{} is nested too deeply", source));
  }
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(fmt::format("{} is not JSON", source));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{} must hold an object, not {}", source, Shown(json)));
  }
  return json;
}

}  // namespace

std::string Text(const Json& json) { return JsonText(json, -1); }

absl::StatusOr<Json> ParseObject(const std::string& text, const std::string& source) {
  return Parse<Json>(text, source);
}

absl::StatusOr<SortedJson> ParseSortedObject(const std::string& text, const std::string& source) {
  return Parse<SortedJson>(text, source);
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadBytes(path, 0, kBytesMax + 1));
  if (text.size() > kBytesMax) {
    return absl::InvalidArgumentError(fmt::format("{} has more than 16 MiB", path));
  }
  return ParseObject(text, path);
}

const Json* Fields::Find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::Has(std::string_view key) const { return Find(key) != nullptr; }

void Fields::Refuse(std::string_view key, std::string_view what) {
  if (status_.ok())
    status_ = absl::InvalidArgumentError(fmt::format("{}: {}: {}", source_, key, what));
}

int64_t Fields::Whole(std::string_view key, std::optional<int64_t> otherwise, int64_t low) {
  const Json* found = Find(key);
  if (found == nullptr) {
    if (!otherwise) Refuse(key, "is missing");
    return otherwise.value_or(low);
  }
  const double value = found->is_number() ? found->get<double>() : std::nan("");
  if (value >= static_cast<double>(low) && value <= kWholeMax && value == std::floor(value))
    return static_cast<int64_t>(value);
  Refuse(key, fmt::format("must be a whole number of at least {}, not {}", low, Shown(*found)));
  return low;
}

bool Fields::Flag(std::string_view key, bool otherwise) {
  const Json* found = Find(key);
  if (found == nullptr) return otherwise;
  if (!found->is_boolean())
    Refuse(key, fmt::format("must be true or false, not {}", Shown(*found)));
  return found->is_boolean() ? found->get<bool>() : otherwise;
}

std::string Fields::Word(std::string_view key, std::string_view otherwise) {
  const Json* found = Find(key);
  if (found == nullptr) return std::string(otherwise);
  if (!found->is_string()) Refuse(key, fmt::format("must be a string, not {}", Shown(*found)));
  return found->is_string() ? found->get<std::string>() : std::string(otherwise);
}

const Json& Fields::Section(std::string_view key) {
  static const Json* empty = new Json(Json::object());
  const Json* found = Find(key);
  if (found == nullptr) return *empty;
  if (!found->is_object()) Refuse(key, fmt::format("must be an object, not {}", Shown(*found)));
  return found->is_object() ? *found : *empty;
}

}  // namespace sluice::tools
