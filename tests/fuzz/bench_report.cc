// Reports of benchmarks, as `sluice bench compare` reads them: what is taken is what would be
// written, and can be compared.

#include "tools/bench_report.h"

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/status.h"
#include "tools/bench_compare.h"

using namespace sluice;         // NOLINT: the fuzzer's entry is outside the namespace
using namespace sluice::tools;  // NOLINT

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json = ParseObject(std::string(reinterpret_cast<const char*>(data), size), "input");
  if (!json.ok()) return 0;
  const auto report = ParseBenchReport(*json, "input");
  if (!report.ok()) return 0;
  const auto again = ParseBenchReport(BenchJson(*report), "again");
  SLUICE_CHECK(again.ok() && *again == *report);
  const auto compared = CompareBenches(*report, *report);
  SLUICE_CHECK(compared.ok() && !compared->worse());
  SLUICE_CHECK(!BenchPage(*report).empty());
  return 0;
}
