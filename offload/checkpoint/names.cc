#include "offload/checkpoint/names.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "core/json_text.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr std::string_view kSafetensors = "safetensors";
constexpr std::string_view kFrozenSafetensors = "frozen.safetensors";
constexpr std::string_view kJson = "json";
constexpr size_t kHexDigits = 16;
constexpr size_t kRankDigits = 5;

std::string_view KindName(Hidden kind) {
  switch (kind) {
    case Hidden::kSaving:
      return "saving";
    case Hidden::kReplaced:
      return "replaced";
    case Hidden::kRemoving:
      break;
  }
  return "removing";
}

std::string RankFile(uint32_t rank, std::string_view rest) {
  return fmt::format("rank-{:05}.{}", rank, rest);
}

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }

}  // namespace

std::string HiddenNameOf(std::string_view tag, uint64_t id, Hidden kind) {
  return fmt::format(".{}.{:016x}.{}", tag, id, KindName(kind));
}

std::optional<HiddenName> ParseHiddenName(std::string_view name) {
  for (const Hidden kind : {Hidden::kSaving, Hidden::kReplaced, Hidden::kRemoving}) {
    const std::string_view end = KindName(kind);
    if (!name.starts_with('.') || !name.ends_with(end)) continue;
    std::string_view rest = name.substr(1, name.size() - 1 - end.size());  // "tag.id."
    if (rest.size() < kHexDigits + 3 || rest.back() != '.') return std::nullopt;
    rest.remove_suffix(1);
    const std::optional<uint64_t> id = ParseHex(rest.substr(rest.size() - kHexDigits));
    rest.remove_suffix(kHexDigits);
    if (!id || rest.back() != '.') return std::nullopt;
    rest.remove_suffix(1);
    if (rest != kLatest && !CheckTag(rest).ok()) return std::nullopt;
    return HiddenName{std::string(rest), *id, kind};
  }
  return std::nullopt;
}

absl::Status CheckTag(std::string_view tag) {
  const bool fits = !tag.empty() && tag.size() <= kTagMax && tag.front() != '.' &&
                    tag.find('/') == std::string_view::npos && tag != kLatest && IsText(tag);
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "'{}' can't be a checkpoint's tag: a tag is a name without '/' that does not begin with '.', "
      "has at most {} bytes and is not 'latest'",
      Shown(tag), kTagMax));
}

absl::Status CheckAttachmentName(std::string_view name) {
  const bool fits = !name.empty() && name.size() <= kTagMax && name.front() != '.' &&
                    name.find('/') == std::string_view::npos && IsText(name) &&
                    name != kSafetensors && name != kFrozenSafetensors && name != kJson;
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("'{}' can't be the name of an attachment", Shown(name)));
}

std::string PartName(uint32_t rank) { return RankFile(rank, kJson); }

std::string DataName(uint32_t rank, SavedFile file) {
  return RankFile(rank, file == kFrozen ? kFrozenSafetensors : kSafetensors);
}

std::string AttachmentFile(uint32_t rank, std::string_view name) { return RankFile(rank, name); }

bool IsOurs(std::string_view name) {
  if (name == kIndexName) return true;
  constexpr std::string_view kStart = "rank-";
  if (!name.starts_with(kStart)) return false;
  name.remove_prefix(kStart.size());
  const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  return digits >= kRankDigits && name.size() > digits + 1 && name[digits] == '.' &&
         name.find('/') == std::string_view::npos;
}

std::string Join(std::string_view directory, std::string_view name) {
  return fmt::format("{}{}{}", directory, directory.ends_with('/') ? "" : "/", name);
}

std::string ParentOf(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(path.substr(0, std::max<size_t>(slash, 1)));
}

bool IsText(std::string_view text) {
  return std::none_of(text.begin(), text.end(), IsControl) && ValidUtf8(text) == text;
}

std::string Shown(std::string_view text) {
  constexpr size_t kMost = 200;
  std::string shown = ValidUtf8(text.substr(0, kMost));
  std::replace_if(shown.begin(), shown.end(), IsControl, '?');
  return text.size() > kMost ? shown + "..." : shown;
}

void AppendQuoted(std::string* to, std::string_view text) {
  *to += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      *to += '\\';
      *to += c;
    } else if (IsControl(c)) {
      fmt::format_to(std::back_inserter(*to), "\\u{:04x}", static_cast<unsigned>(c));
    } else {
      *to += c;
    }
  }
  *to += '"';
}

std::optional<uint64_t> ParseHex(std::string_view text) {
  uint64_t value = 0;
  const auto fits = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (text.size() != kHexDigits || !std::all_of(text.begin(), text.end(), fits))
    return std::nullopt;
  std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return value;
}

}  // namespace sluice
