// offload/checkpoint/seal.h
//
// The first and the last line of a manifest: which version it is of, and the checksum of all that
// stands before it.
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_SEAL_H_
#define SLUICE_OFFLOAD_CHECKPOINT_SEAL_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace sluice {

inline constexpr std::string_view kPartFormat = "sluice checkpoint part";
inline constexpr std::string_view kIndexFormat = "sluice checkpoint";

std::string FirstLine(std::string_view format);
// Ends a text that ends with ",\n".
void Seal(std::string* text);
// Errors: as ParsePart.
absl::Status CheckSeal(std::string_view text, std::string_view format, const std::string& source);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_SEAL_H_
