// core/config.h
//
// Text to values and back: sizes such as "512MiB", environment variables. The only code that reads
// the environment.

#ifndef SLUICE_CORE_CONFIG_H_
#define SLUICE_CORE_CONFIG_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

// "123", "1.5GiB", "512 MiB", "2GB" (powers of 1000 without the i), "64k" (KiB). Not negative.
// Errors: InvalidArgument showing the text and an example.
absl::StatusOr<Bytes> ParseBytes(std::string_view text);

// The largest binary unit with at most one decimal: "1.5 GiB", "512 MiB", "17 B". For tables and
// where nearly is enough.
std::string FormatBytes(Bytes bytes);

// The same, rounded up: "8.1 MiB" for a byte more than 8 MiB. ParseBytes gives at least `bytes`:
// for what is needed.
std::string FormatBytesUp(Bytes bytes);

// Rounded down, for what there is. Less than what is needed, it never reads the same.
std::string FormatBytesDown(Bytes bytes);

// The environment variable, if set and not empty.
std::optional<std::string> GetEnv(const char* name);

// The candidate nearest to `word` by edit distance, if near enough to be a likely typing error.
std::optional<std::string> NearestName(std::string_view word,
                                       const std::vector<std::string>& candidates);

}  // namespace sluice

#endif  // SLUICE_CORE_CONFIG_H_
