// tests/offload/smallest_budget.h
//
// The smallest budget that works, as the error of one that doesn't names it.

#ifndef SLUICE_TESTS_OFFLOAD_SMALLEST_BUDGET_H_
#define SLUICE_TESTS_OFFLOAD_SMALLEST_BUDGET_H_

#include <cstdlib>
#include <optional>
#include <string>

#include "core/status.h"
#include "core/types.h"

namespace sluice {

inline std::optional<Bytes> SmallestNamed(const absl::Status& status) {
  const std::string words(Message(status));
  const size_t at = words.find("the smallest that would is ");
  const size_t open = at == std::string::npos ? at : words.find('(', at);
  if (open == std::string::npos) return std::nullopt;
  return Bytes(std::strtoll(words.c_str() + open + 1, nullptr, 10));
}

// The tier whose budget `status` refuses: "hbm", "pinned" or "nvme".
inline std::string TierNamed(const absl::Status& status) {
  const std::string words(Message(status));
  const std::string begin = "the ";
  return words.starts_with(begin)
             ? words.substr(begin.size(), words.find(' ', begin.size()) - begin.size())
             : "";
}

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_SMALLEST_BUDGET_H_
