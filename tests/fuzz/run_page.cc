// What a run wrote, as `sluice report` reads it: its report, and behind a byte 0 its trace.
// Whatever of it is taken makes a page that is well-formed XML, with no number in it that is none.

#include "tools/run_page.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

using namespace sluice;         // NOLINT: the fuzzer's entry is outside the namespace
using namespace sluice::tools;  // NOLINT

namespace {

constexpr const char* kLeast =
    R"({"planned_bytes": {}, "counters": {}, "steps": {}, "waited_for": {}})";

std::string_view Cut(std::string_view* text, size_t length) {
  const std::string_view head = text->substr(0, length);
  text->remove_prefix(std::min(length, text->size()));
  return head;
}

// Content, or the value of an attribute: nothing that ends it, and references that are known.
void CheckText(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    SLUICE_CHECK((byte >= 0x20 || byte == '\n') && byte != 0x7f && byte != '<');
    if (byte != '&') continue;
    const std::string_view reference = text.substr(i, text.find(';', i) - i);
    bool known = false;
    for (const char* one : {"&amp", "&lt", "&gt", "&quot", "&#39"}) known |= reference == one;
    SLUICE_CHECK(known);
  }
}

// `tag`, what is between the brackets: a name, then attributes.
std::string CheckTag(std::string_view tag) {
  const std::string_view name = Cut(&tag, tag.find(' '));
  while (!tag.empty()) {
    SLUICE_CHECK(Cut(&tag, 1) == " ");
    const size_t equals = tag.find("=\"");
    SLUICE_CHECK(equals != std::string_view::npos);
    const std::string_view key = Cut(&tag, equals);
    SLUICE_CHECK(key.find_first_of(" <>\"&") == std::string_view::npos);
    Cut(&tag, 2);
    const size_t end = tag.find('"');
    SLUICE_CHECK(end != std::string_view::npos);
    const std::string_view value = Cut(&tag, end);
    CheckText(value);
    const bool drawn = key == "style" || key == "d" || key == "height" || key == "y";
    for (const char* none : {"nan", "inf"})
      SLUICE_CHECK(!drawn || value.find(none) == std::string_view::npos);
    Cut(&tag, 1);
  }
  return std::string(name);
}

// Every element that is opened is closed, in order. Brackets in values are escaped, so each ends a
// tag.
void CheckPage(std::string_view page) {
  constexpr std::string_view kType = "<!DOCTYPE html>\n";
  SLUICE_CHECK(page.starts_with(kType));
  page.remove_prefix(kType.size());
  std::vector<std::string> open;
  while (!page.empty()) {
    const std::string_view text = Cut(&page, page.find('<'));
    if (open.empty() || open.back() != "style") CheckText(text);
    if (page.empty()) break;
    const size_t end = page.find('>');
    SLUICE_CHECK(end != std::string_view::npos);
    std::string_view tag = Cut(&page, end + 1);
    tag = tag.substr(1, tag.size() - 2);
    if (tag.starts_with('/')) {
      SLUICE_CHECK(!open.empty() && open.back() == tag.substr(1));
      open.pop_back();
    } else if (tag.ends_with('/')) {
      tag.remove_suffix(1);
      CheckTag(tag);
    } else {
      open.push_back(CheckTag(tag));
    }
  }
  SLUICE_CHECK(open.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  auto json = ParseObject(std::string(Cut(&rest, rest.find('\0'))), "report");
  auto report = json.ok() ? RunReport::Of(*std::move(json), "report") : json.status();
  const bool is_report = report.ok();
  Cut(&rest, 1);
  const auto trace = ParseRunTrace(rest, "trace");
  if (!is_report && !trace.ok()) return 0;
  if (!is_report) report = RunReport::Of(*ParseObject(kLeast, "least"), "least");
  CheckPage(RunPageHtml(*report, trace.ok() ? &*trace : nullptr));
  return 0;
}
