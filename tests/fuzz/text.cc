// What people type: sizes ("512MiB"), counts ("7B"), misspelt names.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/config.h"
#include "core/status.h"
#include "tools/model_shape.h"

using namespace sluice;  // NOLINT: the fuzzer's entry is outside the namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const absl::StatusOr<Bytes> bytes = ParseBytes(text); bytes.ok()) {
    SLUICE_CHECK(*bytes >= Bytes(0));
    const absl::StatusOr<Bytes> again = ParseBytes(FormatBytes(*bytes));
    const bool shown_exactly = *bytes < KiB(1);
    SLUICE_CHECK(!shown_exactly || (again.ok() && *again == *bytes));
  }
  if (const absl::StatusOr<int64_t> count = tools::ParseCount(text); count.ok())
    SLUICE_CHECK(*count > 0);
  const std::string_view word = text.substr(0, 64);
  const auto nearest = NearestName(word, {"stage", "offload_param", "lr", ""});
  SLUICE_CHECK(word != "stage" || nearest == "stage");
  return 0;
}
