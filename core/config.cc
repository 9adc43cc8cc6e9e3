#include "core/config.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

struct Suffix {
  const char* name;  // lower case
  double factor;
};
constexpr Suffix kSuffixes[] = {{"", 1},
                                {"b", 1},
                                {"k", 1024.0},
                                {"kib", 1024.0},
                                {"m", 1048576.0},
                                {"mib", 1048576.0},
                                {"g", 1073741824.0},
                                {"gib", 1073741824.0},
                                {"t", 1099511627776.0},
                                {"tib", 1099511627776.0},
                                {"kb", 1e3},
                                {"mb", 1e6},
                                {"gb", 1e9},
                                {"tb", 1e12}};

constexpr std::array<const char*, 7> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
constexpr size_t kUnitParsed = 4;  // TiB: the largest that ParseBytes knows

// In tenths of the largest unit, cut off, or one more if anything was cut and `up` is 1.
std::string Rounded(Bytes bytes, int up) {
  const auto value = static_cast<__int128>(std::max<int64_t>(0, bytes.value()));
  __int128 size = 1;
  size_t unit = 0;
  __int128 tenths = value * 10;
  while (tenths >= 10 * 1024 - up && unit < kUnitParsed) {
    size *= 1024;
    ++unit;
    tenths = (value * 10 + up * (size - 1)) / size;
  }
  const auto number = static_cast<int64_t>(tenths);
  return number % 10 == 0 ? fmt::format("{} {}", number / 10, kUnits[unit])
                          : fmt::format("{}.{} {}", number / 10, number % 10, kUnits[unit]);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

absl::StatusOr<Bytes> ParseBytes(std::string_view text) {
  const auto wrong = [text] {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is not a size; write it like 512MiB, 1.5GiB or 1000000", text));
  };
  double number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return wrong();
  // A whole number is exact, also where a double is not.
  int64_t whole = 0;
  const bool is_whole = std::from_chars(text.data(), end, whole).ptr == end;
  std::string suffix;
  for (const char* c = end; c != text.data() + text.size(); ++c) {
    if (*c != ' ') suffix += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  for (const Suffix& s : kSuffixes) {
    if (suffix != s.name) continue;
    const double bytes = std::round(number * s.factor);
    if (bytes >= 9.2e18) return wrong();
    return is_whole ? Bytes(whole * static_cast<int64_t>(s.factor))
                    : Bytes(static_cast<int64_t>(bytes));
  }
  return wrong();
}

std::string FormatBytesUp(Bytes bytes) { return Rounded(bytes, /*up=*/1); }

std::string FormatBytesDown(Bytes bytes) { return Rounded(bytes, /*up=*/0); }

std::string FormatBytes(Bytes bytes) {
  double value = static_cast<double>(bytes.value());
  size_t unit = 0;
  while (std::abs(value) >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::string number = fmt::format("{:.1f}", value);
  if (number.ends_with(".0")) number.resize(number.size() - 2);
  return fmt::format("{} {}", number, kUnits[unit]);
}

std::optional<std::string> GetEnv(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::optional<std::string> NearestName(std::string_view word,
                                       const std::vector<std::string>& candidates) {
  const std::string* best = nullptr;
  const size_t distance_max = word.size() < 4 ? 1 : std::max<size_t>(2, word.size() / 3);
  size_t best_distance = distance_max + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best_distance) {
      best = &candidate;
      best_distance = distance;
    }
  }
  return best == nullptr ? std::nullopt : std::optional<std::string>(*best);
}

}  // namespace sluice
