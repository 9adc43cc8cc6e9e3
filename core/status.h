// core/status.h
//
// What the outside world can cause is an absl::Status; what only a bug can cause is a SLUICE_CHECK,
// which stays on in release builds, prints the condition and its place to stderr, and aborts.
// Thread-safe; nothing here allocates unless something has gone wrong.

#ifndef SLUICE_CORE_STATUS_H_
#define SLUICE_CORE_STATUS_H_

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice {

// A status for a failed system call: "<what>: <strerror> (<ERRNO NAME>)". ENOSPC and EDQUOT become
// ResourceExhausted, ENOENT NotFound, EACCES and EPERM PermissionDenied, EINVAL InvalidArgument,
// EIO DataLoss, everything else Unavailable. `errno_value` is the positive errno.
absl::Status ErrnoStatus(int errno_value, std::string_view what);

// "EPERM"; "errno 41" for one that has no name.
std::string ErrnoName(int errno_value);

// `status` with "<context>: " before its message; the code is kept. Ok stays ok.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// The message of `status` (Abseil's string_view is a type of its own in Debian's build).
inline std::string_view Message(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

namespace internal {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line,
                              std::string_view detail);
}  // namespace internal

}  // namespace sluice

#define SLUICE_CHECK(condition) SLUICE_CHECK_MSG(condition, "")
#define SLUICE_CHECK_MSG(condition, detail)                                      \
  do {                                                                           \
    if (!(condition)) [[unlikely]]                                               \
      ::sluice::internal::CheckFailed(#condition, __FILE__, __LINE__, (detail)); \
  } while (false)

#define SLUICE_RETURN_IF_ERROR(expression)                                                    \
  do {                                                                                        \
    if (absl::Status sluice_status = (expression); !sluice_status.ok()) return sluice_status; \
  } while (false)

#define SLUICE_CONCAT_INNER(a, b) a##b
#define SLUICE_CONCAT(a, b) SLUICE_CONCAT_INNER(a, b)
#define SLUICE_ASSIGN_OR_RETURN(lhs, expression) \
  SLUICE_ASSIGN_OR_RETURN_IMPL(SLUICE_CONCAT(sluice_statusor_, __LINE__), lhs, expression)
#define SLUICE_ASSIGN_OR_RETURN_IMPL(var, lhs, expression) \
  auto var = (expression);                                 \
  if (!var.ok()) return std::move(var).status();           \
  lhs = *std::move(var)

#endif  // SLUICE_CORE_STATUS_H_
