#include "tools/bench_report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>
#include <string_view>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "tools/output.h"

namespace sluice::tools {

namespace {

constexpr int64_t kKeysVersion = 1;

using Number = std::optional<double>;

// What a case has, in the order in which it is written.
struct TextKey {
  const char* key;
  std::string BenchCase::*field;
};
struct NumberKey {
  const char* key;
  Number BenchCase::*field;
};
constexpr NumberKey kCaseNumbers[] = {{"value", &BenchCase::value},
                                      {"limit", &BenchCase::limit},
                                      {"peer", &BenchCase::peer},
                                      {"ratio_to_limit", &BenchCase::ratio_to_limit},
                                      {"ratio_to_peer", &BenchCase::ratio_to_peer},
                                      {"spread", &BenchCase::spread},
                                      {"cpu_s_per_gb", &BenchCase::cpu_s_per_gb},
                                      {"peer_cpu_s_per_gb", &BenchCase::peer_cpu_s_per_gb},
                                      {"p50_us", &BenchCase::p50_us},
                                      {"p99_us", &BenchCase::p99_us}};
constexpr TextKey kCaseTexts[] = {{"limit_is", &BenchCase::limit_is},
                                  {"peer_is", &BenchCase::peer_is},
                                  {"note", &BenchCase::note}};
struct SetupKey {
  const char* key;
  std::string BenchSetup::*field;
};
constexpr SetupKey kSetupTexts[] = {{"commit", &BenchSetup::commit},
                                    {"version", &BenchSetup::version},
                                    {"cpu", &BenchSetup::cpu},
                                    {"kernel", &BenchSetup::kernel},
                                    {"file_system", &BenchSetup::file_system},
                                    {"device", &BenchSetup::device},
                                    {"code_path", &BenchSetup::code_path}};

Json OrNull(const std::string& text) { return text.empty() ? Json() : Json(text); }
Json OrNull(Number number) { return number ? Json(*number) : Json(); }

// An object that has these keys and no other.
class Strict {
 public:
  Strict(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Refuse("is no object");
  }

  const Json& At(const char* key) {
    static const Json* none = new Json();
    known_.insert(key);
    if (!object_.is_object()) return *none;
    const auto found = object_.find(key);
    if (found == object_.end()) Refuse(fmt::format("{} is missing", key));
    return found == object_.end() ? *none : *found;
  }
  std::string TextOrNull(const char* key) {
    const Json& json = At(key);
    if (json.is_null()) return "";
    std::string text = json.is_string() ? json.get<std::string>() : "";
    if (text.empty()) Refuse(fmt::format("{} is no string that says something", key));
    return text;
  }
  std::string FilledText(const char* key) {
    std::string text = TextOrNull(key);
    if (text.empty()) Refuse(fmt::format("{} says nothing", key));
    return text;
  }
  Number NumberOrNull(const char* key) {
    const Json& json = At(key);
    if (json.is_null()) return {};
    const double value = json.is_number() ? json.get<double>() : std::nan("");
    if (!std::isfinite(value) || value < 0) Refuse(fmt::format("{} is no figure", key));
    return value;
  }
  int64_t Whole(const char* key) {
    const Number number = NumberOrNull(key);
    if (!number || *number != std::floor(*number) || *number > 1e15)
      Refuse(fmt::format("{} is no whole number", key));
    return status_.ok() ? static_cast<int64_t>(*number) : 0;
  }
  void Refuse(std::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(fmt::format("{}: {}", where_, what));
  }
  // Once all keys have been asked for.
  absl::Status End() {
    if (!object_.is_object()) return status_;
    for (const auto& [key, value] : object_.items()) {
      if (!known_.contains(key)) Refuse(fmt::format("{} is not known", key));
    }
    return status_;
  }

 private:
  const Json& object_;
  const std::string where_;
  std::set<std::string> known_;
  absl::Status status_;
};

absl::StatusOr<BenchCase> ParseCase(const Json& json, const std::string& where) {
  Strict fields(json, where);
  BenchCase one;
  one.name = fields.FilledText("name");
  one.unit = fields.FilledText("unit");
  if (!BetterOf(one.unit)) fields.Refuse(fmt::format("'{}' is no unit", one.unit));
  for (const NumberKey& n : kCaseNumbers) one.*n.field = fields.NumberOrNull(n.key);
  for (const TextKey& t : kCaseTexts) one.*t.field = fields.TextOrNull(t.key);
  if (one.value && *one.value <= 0) fields.Refuse("value is not above 0");
  SLUICE_RETURN_IF_ERROR(fields.End());
  return one;
}

std::string RatioText(Number ratio) { return ratio ? fmt::format("{:.3f}", *ratio) : "-"; }

std::string CaseText(const BenchCase& one, size_t unit_columns) {
  if (!one.value) return one.note.empty() ? "not measured" : one.note;
  std::string text = fmt::format("{:>9} {:<{}}", FigureText(*one.value), one.unit, unit_columns);
  if (one.spread) text += fmt::format(" ±{:>4.1f}%", *one.spread * 50);
  if (one.limit) text += fmt::format("  {} of the limit", RatioText(one.ratio_to_limit));
  if (one.peer) text += fmt::format("  {} of the peer", RatioText(one.ratio_to_peer));
  if (one.p50_us && one.p99_us) {
    text += fmt::format("  p50 {} us, p99 {} us", FigureText(*one.p50_us), FigureText(*one.p99_us));
  }
  if (one.cpu_s_per_gb) text += fmt::format("  CPU {:.3f} s/GB", *one.cpu_s_per_gb);
  if (one.peer_cpu_s_per_gb) text += fmt::format(" (peer {:.3f})", *one.peer_cpu_s_per_gb);
  if (!one.note.empty()) text += fmt::format("  {}", one.note);
  return text;
}

// Each thing that limits or peers are, once, with the case that has it first.
void AddMeanings(const BenchReport& report, const char* title, std::string BenchCase::*field,
                 Page* page) {
  struct Meaning {
    std::string what;
    std::string first;
    int more = 0;
  };
  std::vector<Meaning> meanings;
  for (const BenchCase& one : report.cases) {
    if ((one.*field).empty()) continue;
    const auto known = std::ranges::find(meanings, one.*field, &Meaning::what);
    if (known == meanings.end()) {
      meanings.push_back({.what = one.*field, .first = one.name});
    } else {
      ++known->more;
    }
  }
  if (meanings.empty()) return;
  page->Section(title);
  for (const Meaning& m : meanings) {
    page->Row(meanings.size() == 1 ? "of all"
              : m.more == 0        ? m.first
                                   : fmt::format("{}, and {} more", m.first, m.more),
              m.what);
  }
}

}  // namespace

double Median(std::vector<double> values) {
  SLUICE_CHECK(!values.empty());
  std::ranges::sort(values);
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double QuartileSpread(std::vector<double> values) {
  std::ranges::sort(values);
  const auto at = [&values](double part) {
    const double place = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return std::lerp(values[below], values[above], place - static_cast<double>(below));
  };
  return (at(0.75) - at(0.25)) / Median(values);
}

BenchCase MakeCase(std::string name, std::string unit, const BenchRounds& rounds) {
  BenchCase one{.name = std::move(name), .unit = std::move(unit)};
  const auto ratio = [&rounds](const std::vector<double>& to) {
    SLUICE_CHECK(to.size() == rounds.own.size());
    std::vector<double> ratios;
    for (size_t i = 0; i < to.size(); ++i) ratios.push_back(rounds.own[i] / to[i]);
    return Median(ratios);
  };
  one.value = Median(rounds.own);
  one.spread = QuartileSpread(rounds.own);
  if (!rounds.limit.empty()) {
    one.limit = Median(rounds.limit);
    one.ratio_to_limit = ratio(rounds.limit);
  }
  if (!rounds.peer.empty()) {
    one.peer = Median(rounds.peer);
    one.ratio_to_peer = ratio(rounds.peer);
  }
  return one;
}

std::optional<Better> BetterOf(std::string_view unit) {
  if (unit.ends_with("/s")) return Better::kMore;
  for (const std::string_view time : {"s", "ms", "us", "ns"}) {
    if (unit == time) return Better::kLess;
  }
  return {};
}

Json BenchJson(const BenchReport& report) {
  Json json = {{"sluice_bench", kKeysVersion}, {"benchmark", report.benchmark}};
  Json setup = Json::object();
  for (const SetupKey& s : kSetupTexts) setup[s.key] = OrNull(report.setup.*s.field);
  setup["cores"] = report.setup.cores;
  json["setup"] = std::move(setup);
  json["cases"] = Json::array();
  for (const BenchCase& one : report.cases) {
    Json fields = {{"name", one.name}, {"unit", one.unit}};
    for (const NumberKey& n : kCaseNumbers) fields[n.key] = OrNull(one.*n.field);
    for (const TextKey& t : kCaseTexts) fields[t.key] = OrNull(one.*t.field);
    json["cases"].push_back(std::move(fields));
  }
  json["notes"] = report.notes;
  return json;
}

absl::StatusOr<BenchReport> ParseBenchReport(const Json& json, const std::string& source) {
  BenchReport report;
  Strict fields(json, source);
  if (fields.Whole("sluice_bench") != kKeysVersion)
    fields.Refuse(fmt::format("no report of `sluice bench` of this version ({})", kKeysVersion));
  report.benchmark = fields.FilledText("benchmark");
  Strict setup(fields.At("setup"), source + ": setup");
  for (const SetupKey& s : kSetupTexts) report.setup.*s.field = setup.TextOrNull(s.key);
  report.setup.cores = setup.Whole("cores");
  const Json& cases = fields.At("cases");
  if (!cases.is_array()) fields.Refuse("cases is no list");
  const Json& notes = fields.At("notes");
  if (!notes.is_array()) fields.Refuse("notes is no list");
  SLUICE_RETURN_IF_ERROR(fields.End());
  SLUICE_RETURN_IF_ERROR(setup.End());
  std::set<std::string> names;
  for (const Json& one : cases) {
    const std::string where = fmt::format("{}: case {}", source, report.cases.size() + 1);
    SLUICE_ASSIGN_OR_RETURN(BenchCase parsed, ParseCase(one, where));
    if (!names.insert(parsed.name).second)
      return absl::InvalidArgumentError(fmt::format("{}: a second '{}'", where, parsed.name));
    report.cases.push_back(std::move(parsed));
  }
  for (const Json& note : notes) {
    if (!note.is_string())
      return absl::InvalidArgumentError(fmt::format("{}: a note is no string", source));
    report.notes.push_back(note.get<std::string>());
  }
  return report;
}

absl::StatusOr<BenchReport> ReadBenchReport(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  return ParseBenchReport(json, path);
}

std::string BenchPage(const BenchReport& report) {
  Page page;
  page.Section("Setup");
  const BenchSetup& setup = report.setup;
  page.Row("CPU", fmt::format("{}; {} may be used", setup.cpu,
                              setup.cores == 1 ? "1 core" : fmt::format("{} cores", setup.cores)));
  page.Row("kernel", setup.kernel);
  page.Row("sluice", fmt::format("{}, commit {}", setup.version,
                                 setup.commit.empty() ? "not known" : setup.commit));
  if (!setup.file_system.empty()) page.Row("file system", setup.file_system);
  if (!setup.device.empty()) page.Row("device", setup.device);
  if (!setup.code_path.empty()) page.Row("code path", setup.code_path);
  page.Section("Measured");
  size_t unit_columns = 0;
  for (const BenchCase& one : report.cases) unit_columns = std::max(unit_columns, one.unit.size());
  for (const BenchCase& one : report.cases) page.Row(one.name, CaseText(one, unit_columns));
  AddMeanings(report, "The limit", &BenchCase::limit_is, &page);
  AddMeanings(report, "The peer", &BenchCase::peer_is, &page);
  page.List("To know", report.notes);
  return page.Text();
}

std::string FigureText(double value) {
  if (value >= 10'000) {
    std::string digits = fmt::format("{:.0f}", value);
    for (size_t i = 4; i < digits.size(); ++i) digits[i] = '0';
    for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
    return digits;
  }
  if (value >= 1000) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

}  // namespace sluice::tools
