// tools/bench_compare.h
//
// `sluice bench compare`: what changed from one report of a benchmark to another, beyond what their
// rounds scatter.
//
// Keys of a comparison:
//   worse                        whether any case is
//   setup_differences            what differs between the machines; commits are not named
//   cases                        of both
//   cases.name
//   cases.unit
//   cases.a                      the first report's value; null: not measured
//   cases.b                      the second's
//   cases.ratio                  b / a
//   cases.spread                 what a ratio must differ from 1 by to count
//   cases.change                 better, worse, same, only in a, only in b, not measured

#ifndef SLUICE_TOOLS_BENCH_COMPARE_H_
#define SLUICE_TOOLS_BENCH_COMPARE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/bench_report.h"
#include "tools/output.h"

namespace sluice::tools {

enum class BenchChange { kBetter, kWorse, kSame, kOnlyInA, kOnlyInB, kNotMeasured };
const char* Name(BenchChange change);

struct CaseChange {
  std::string name;
  std::string unit;
  std::optional<double> a;
  std::optional<double> b;
  std::optional<double> ratio;
  std::optional<double> spread;
  BenchChange change = BenchChange::kSame;
};

struct BenchComparison {
  std::vector<std::string> setup_differences;
  std::vector<CaseChange> cases;  // in a's order; then those that only b has
  bool worse() const;
};

// Less than this never counts, however little the rounds scatter.
inline constexpr double kLeastChange = 0.02;

// Errors: InvalidArgument, if they are of two benchmarks, or a case has two units.
absl::StatusOr<BenchComparison> CompareBenches(const BenchReport& a, const BenchReport& b);

// `sluice bench compare A B`: kDone, kFailed if something is worse, kUsage.
ExitCode RunBenchCompare(const std::string& a, const std::string& b, bool as_json);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_BENCH_COMPARE_H_
