#include "core/json_text.h"

#include <gtest/gtest.h>

#include "nlohmann/json.hpp"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

TEST(JsonTextTest, WhatIsNoCharacterIsWrittenOut) {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},
      {"/mnt/a", "/mnt/a"},
      {"/mnt/\xC3\xA9", "/mnt/\xC3\xA9"},  // in UTF-8
      {"/mnt/\xE9", "/mnt/\\xE9"},         // in Latin-1
      {"\xE9\xE9/x", "\\xE9\\xE9/x"},
      {"\xC3", "\\xC3"},  // cut off
      {"\xE2\x82", "\\xE2\\x82"},
      {"\xC0\xAF", "\\xC0\\xAF"},  // overlong
      {"\xE0\x80\xAF", "\\xE0\\x80\\xAF"},
      {"\xED\xA0\x80", "\\xED\\xA0\\x80"},           // a surrogate
      {"\xF4\x90\x80\x80", "\\xF4\\x90\\x80\\x80"},  // beyond Unicode
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
      {"\xFF\x80", "\\xFF\\x80"},
  };
  for (const auto& [given, expected] : cases) EXPECT_EQ(ValidUtf8(given), expected);
}

// The oracle is the library that reads it: it refuses what isn't UTF-8.
TEST(JsonTextTest, EveryStringOfTwoOrThreeBytesCanBeReadBack) {
  const auto check = [](const std::string& text) {
    const Json json = {{"text", text}, {"list", {text}}};
    const std::string written = JsonText(json, -1);
    const Json read = Json::parse(written, nullptr, false);
    ASSERT_FALSE(read.is_discarded()) << written;
    ASSERT_EQ(read["text"], ValidUtf8(text));
    Json strict = text;
    bool valid = true;
    try {
      (void)strict.dump();
    } catch (const Json::exception&) {
      valid = false;
    }
    ASSERT_EQ(valid, ValidUtf8(text) == text) << written;
  };
  for (int a = 1; a < 256; ++a) {
    for (int b = 1; b < 256; ++b) check({static_cast<char>(a), static_cast<char>(b)});
    for (const int b : {0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0}) {
      for (const int c : {0x7F, 0x80, 0xBF, 0xC0}) {
        check({static_cast<char>(a), static_cast<char>(b), static_cast<char>(c)});
        check({static_cast<char>(a), static_cast<char>(b), static_cast<char>(c), '\x80'});
      }
    }
  }
}

}  // namespace
}  // namespace sluice
