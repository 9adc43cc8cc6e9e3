#include "tools/html.h"

#include <algorithm>
#include <cmath>

#include "core/config.h"
#include "core/types.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

constexpr double kBytesMax = 9e18;

// U+FFFE and U+FFFF, which no document may have.
bool IsNoCharacter(std::string_view text) {
  return text.starts_with("\xEF\xBF\xBE") || text.starts_with("\xEF\xBF\xBF");
}

}  // namespace

std::string Escaped(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const auto byte = static_cast<unsigned char>(c);
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (IsNoCharacter(text.substr(i))) {
      out += text[i + 2] == '\xBE' ? "\\ufffe" : "\\uffff";
      i += 2;
    } else {
      out += c;
    }
  }
  return out;
}

std::string NameHtml(std::string_view name) { return fmt::format("<bdi>{}</bdi>", Escaped(name)); }

std::string TimeText(double seconds) {
  const double size = std::abs(seconds);
  if (size == 0) return "0 s";
  if (size >= 100) return fmt::format("{:.0f} s", seconds);
  if (size >= 0.9995) return fmt::format("{:.3g} s", seconds);
  if (size >= 0.9995e-3) return fmt::format("{:.3g} ms", seconds * 1e3);
  if (size >= 0.9995e-6) return fmt::format("{:.3g} µs", seconds * 1e6);
  return fmt::format("{:.3g} ns", seconds * 1e9);
}

std::string ShareText(double share) {
  const double percent = 100 * share;
  if (percent == 0 || std::abs(percent) >= 0.95) return fmt::format("{:.0f}%", percent);
  return std::abs(percent) < 0.05 ? "under 0.1%" : fmt::format("{:.1f}%", percent);
}

std::string SizeText(double bytes) {
  return FormatBytes(Bytes(static_cast<int64_t>(std::clamp(bytes, 0.0, kBytesMax))));
}

std::string RateText(double bytes_per_second) {
  if (bytes_per_second >= 0.9995e9) return fmt::format("{:.3g} GB/s", bytes_per_second / 1e9);
  if (bytes_per_second >= 0.9995e6) return fmt::format("{:.3g} MB/s", bytes_per_second / 1e6);
  return fmt::format("{:.3g} kB/s", bytes_per_second / 1e3);
}

double PercentOf(double share) {
  return std::isfinite(share) ? 100 * std::clamp(share, 0.0, 1.0) : 0.0;
}

std::string WidthText(double share) { return fmt::format("{:.2f}%", PercentOf(share)); }

}  // namespace sluice::tools
