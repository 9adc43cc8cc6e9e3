#include "tools/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/config.h"
#include "fmt/format.h"
#include "offload/plan/placement.h"

namespace sluice::tools {

namespace {

constexpr size_t kWidth = 100;

// `text` cut at spaces into lines of at most `width`, the first `hang` more; a longer word has a
// line of its own.
std::vector<std::string> Wrap(std::string_view text, size_t width, size_t hang) {
  std::vector<std::string> lines;
  for (size_t most = width + hang; text.size() > most; most = width) {
    size_t cut = text.rfind(' ', most);
    if (cut == std::string_view::npos) cut = text.find(' ');
    if (cut == std::string_view::npos) break;
    lines.emplace_back(text.substr(0, cut));
    text.remove_prefix(cut + 1);
  }
  lines.emplace_back(text);
  return lines;
}

}  // namespace

void Page::Section(std::string title) {
  blocks_.push_back({.title = std::move(title), .lines = {}});
}

void Page::Row(std::string label, std::string value, size_t hang) {
  blocks_.back().lines.push_back(
      {.label = std::move(label), .value = std::move(value), .hang = hang});
}

void Page::List(std::string title, const std::vector<std::string>& items) {
  if (items.empty()) return;
  Section(std::move(title));
  for (size_t i = 0; i < items.size(); ++i) Row(fmt::format("{}.", i + 1), items[i]);
}

std::string Page::Text() const {
  std::string text;
  for (const Block& block : blocks_) {
    size_t labels = 0;  // columns
    for (const Line& line : block.lines) labels = std::max(labels, line.label.size());
    if (!text.empty()) text += '\n';
    text += block.title + '\n';
    for (const Line& line : block.lines) {
      const size_t indent = labels + 4 + line.hang;
      std::string start = fmt::format("  {:<{}}  ", line.label, labels);
      for (const std::string& piece : Wrap(line.value, kWidth - indent, line.hang)) {
        text += start + piece;
        text.erase(text.find_last_not_of(' ') + 1);
        text += '\n';
        start.assign(indent, ' ');
      }
    }
  }
  return text;
}

std::string BudgetText(Bytes budget) {
  return budget >= kNoLimit ? "no limit" : FormatBytes(budget);
}

std::string CountText(int64_t count) {
  const auto value = static_cast<double>(count);
  if (count >= 1'000'000'000'000) return fmt::format("{:.1f} trillion", value / 1e12);
  if (count >= 1'000'000'000) return fmt::format("{:.1f} billion", value / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.1f} million", value / 1e6);
  return fmt::format("{}", count);
}

ExitCode Print(std::string_view text) {
  const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (written == text.size() && std::fflush(stdout) == 0) return kDone;
  return Fail(fmt::format("writing the output: {}", std::strerror(errno)));
}

ExitCode Fail(std::string_view message) {
  fmt::print(stderr, "sluice: {}\n", message);
  return kFailed;
}

Progress::Progress() : shown_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (shown_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::Show(double part, std::string_view what) const {
  if (shown_) fmt::print(stderr, "\r\x1b[K{:3.0f}%  {}", part * 100, what);
}

}  // namespace sluice::tools
