#include "tools/bench_compare.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

const BenchCase* Find(const BenchReport& report, const std::string& name) {
  const auto found = std::ranges::find(report.cases, name, &BenchCase::name);
  return found == report.cases.end() ? nullptr : &*found;
}

// Of what both measured. A ratio counts if it is farther from 1, either way, than the wider of the
// two spreads.
void Judge(const BenchCase& a, const BenchCase& b, CaseChange* change) {
  const double spread = std::max({a.spread.value_or(0), b.spread.value_or(0), kLeastChange});
  const double ratio = *b.value / *a.value;
  change->spread = spread;
  change->ratio = ratio;
  const bool more = ratio > 1 + spread;
  const bool less = ratio < 1 / (1 + spread);
  if (!more && !less) return;
  const bool more_is_better = BetterOf(a.unit) == Better::kMore;
  change->change = more == more_is_better ? BenchChange::kBetter : BenchChange::kWorse;
}

std::vector<std::string> Differences(const BenchSetup& a, const BenchSetup& b) {
  std::vector<std::string> found;
  const auto add = [&found](const char* what, const std::string& x, const std::string& y) {
    if (x == y) return;
    found.push_back(
        fmt::format("{}: {} in a, {} in b", what, x.empty() ? "none" : x, y.empty() ? "none" : y));
  };
  add("CPU", a.cpu, b.cpu);
  add("cores", std::to_string(a.cores), std::to_string(b.cores));
  add("kernel", a.kernel, b.kernel);
  add("file system", a.file_system, b.file_system);
  add("device", a.device, b.device);
  add("code path", a.code_path, b.code_path);
  return found;
}

std::string ChangeText(const CaseChange& one) {
  const auto figure = [](std::optional<double> value) {
    return value ? FigureText(*value) : std::string("-");
  };
  std::string text = fmt::format("{:<6}", Name(one.change));
  if (one.change == BenchChange::kOnlyInA || one.change == BenchChange::kOnlyInB ||
      one.change == BenchChange::kNotMeasured)
    return text;
  text += fmt::format("  {:>9} to {:>9} {:<10}", figure(one.a), figure(one.b), one.unit);
  return text + fmt::format("  x {:.3f} (counts beyond {:.0f}%)", *one.ratio, *one.spread * 100);
}

std::string PageOf(const BenchComparison& comparison, const BenchReport& a, const BenchReport& b) {
  Page page;
  const auto commit = [](const BenchReport& report) {
    return report.setup.commit.empty() ? "not known" : report.setup.commit;
  };
  page.Section(fmt::format("sluice bench {}: commit {} to {}", a.benchmark, commit(a), commit(b)));
  std::array<int, 6> counts{};
  for (const CaseChange& one : comparison.cases) {
    page.Row(one.name, ChangeText(one));
    ++counts[static_cast<size_t>(one.change)];
  }
  if (comparison.cases.empty()) page.Row("cases", "none");
  std::string sum;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    if (!sum.empty()) sum += ", ";
    sum += fmt::format("{} {}", counts[i], Name(static_cast<BenchChange>(i)));
  }
  page.Section("Together");
  page.Row("cases", sum.empty() ? "none" : sum);
  std::vector<std::string> warnings = comparison.setup_differences;
  if (!warnings.empty()) {
    warnings.insert(warnings.begin(),
                    "these are of different setups, and may differ for that alone");
  }
  page.List("Warning", warnings);
  return page.Text();
}

Json JsonOf(const BenchComparison& comparison) {
  Json json = {{"worse", comparison.worse()},
               {"setup_differences", comparison.setup_differences},
               {"cases", Json::array()}};
  const auto number = [](std::optional<double> value) { return value ? Json(*value) : Json(); };
  for (const CaseChange& one : comparison.cases) {
    json["cases"].push_back({{"name", one.name},
                             {"unit", one.unit},
                             {"a", number(one.a)},
                             {"b", number(one.b)},
                             {"ratio", number(one.ratio)},
                             {"spread", number(one.spread)},
                             {"change", Name(one.change)}});
  }
  return json;
}

}  // namespace

const char* Name(BenchChange change) {
  constexpr const char* kNames[] = {"better",    "worse",     "same",
                                    "only in a", "only in b", "not measured"};
  return kNames[static_cast<size_t>(change)];
}

bool BenchComparison::worse() const {
  return std::ranges::any_of(cases,
                             [](const CaseChange& c) { return c.change == BenchChange::kWorse; });
}

absl::StatusOr<BenchComparison> CompareBenches(const BenchReport& a, const BenchReport& b) {
  if (a.benchmark != b.benchmark) {
    return absl::InvalidArgumentError(
        fmt::format("these are of two benchmarks, {} and {}, which can't be compared", a.benchmark,
                    b.benchmark));
  }
  BenchComparison comparison{.setup_differences = Differences(a.setup, b.setup), .cases = {}};
  for (const BenchCase& one : a.cases) {
    CaseChange change{.name = one.name, .unit = one.unit, .a = one.value};
    const BenchCase* const other = Find(b, one.name);
    if (other == nullptr) {
      change.change = BenchChange::kOnlyInA;
    } else if (other->unit != one.unit) {
      return absl::InvalidArgumentError(
          fmt::format("'{}' is in {} and in {}", one.name, one.unit, other->unit));
    } else {
      change.b = other->value;
      if (!change.a || !change.b) {
        change.change = BenchChange::kNotMeasured;
      } else {
        Judge(one, *other, &change);
      }
    }
    comparison.cases.push_back(std::move(change));
  }
  for (const BenchCase& one : b.cases) {
    if (Find(a, one.name) != nullptr) continue;
    comparison.cases.push_back(
        {.name = one.name, .unit = one.unit, .b = one.value, .change = BenchChange::kOnlyInB});
  }
  return comparison;
}

ExitCode RunBenchCompare(const std::string& a_path, const std::string& b_path, bool as_json) {
  const auto refused = [](const absl::Status& status) {
    Fail(Message(status));
    return kUsage;
  };
  const absl::StatusOr<BenchReport> a = ReadBenchReport(a_path);
  if (!a.ok()) return refused(a.status());
  const absl::StatusOr<BenchReport> b = ReadBenchReport(b_path);
  if (!b.ok()) return refused(b.status());
  const absl::StatusOr<BenchComparison> comparison = CompareBenches(*a, *b);
  if (!comparison.ok()) return refused(comparison.status());
  const ExitCode printed =
      Print(as_json ? JsonText(JsonOf(*comparison), 2) + "\n" : PageOf(*comparison, *a, *b));
  if (printed != kDone) return printed;
  return comparison->worse() ? kFailed : kDone;
}

}  // namespace sluice::tools
