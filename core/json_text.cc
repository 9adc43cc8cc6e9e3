#include "core/json_text.h"

#include <cstdint>
#include <utility>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {

namespace {

// How many bytes the well-formed character at the start of `text` has; 0 if there is none. Overlong
// forms, surrogates and what is beyond Unicode are not well-formed.
size_t CharacterAt(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = at(0);
  if (first < 0x80) return 1;
  const size_t n = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  if (n == 0 || text.size() < n) return 0;
  for (size_t i = 1; i < n; ++i)
    if (at(i) < 0x80 || at(i) > 0xBF) return 0;
  const uint8_t second = at(1);
  const bool wrong = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                     (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return wrong ? 0 : n;
}

void MakeValid(nlohmann::ordered_json* json) {
  if (json->is_string()) {
    auto& text = json->get_ref<std::string&>();
    text = ValidUtf8(text);
  } else if (json->is_structured()) {
    for (auto& value : *json) MakeValid(&value);
  }
}

}  // namespace

std::string ValidUtf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t n = CharacterAt(text);
    if (n == 0) {
      valid += fmt::format("\\x{:02X}", static_cast<uint8_t>(text.front()));
      text.remove_prefix(1);
      continue;
    }
    valid += text.substr(0, n);
    text.remove_prefix(n);
  }
  return valid;
}

std::string JsonText(nlohmann::ordered_json json, int indent) {
  MakeValid(&json);
  return json.dump(indent);
}

}  // namespace sluice
