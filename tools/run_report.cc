#include "tools/run_report.h"

#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

const Json* At(const Json& object, std::string_view path) {
  const Json* at = &object;
  while (true) {
    if (!at->is_object()) return nullptr;
    const size_t dot = path.find('.');
    const auto found = at->find(path.substr(0, dot));
    if (found == at->end()) return nullptr;
    at = &*found;
    if (dot == std::string_view::npos) return at;
    path.remove_prefix(dot + 1);
  }
}

}  // namespace

absl::StatusOr<RunReport> RunReport::Read(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(Json whole, ReadJsonFile(path));
  return Of(std::move(whole), path);
}

absl::StatusOr<RunReport> RunReport::Of(Json whole, const std::string& source) {
  RunReport report;
  report.whole_ = std::make_shared<const Json>(std::move(whole));
  report.source_ = source;
  const auto inner = report.whole().find("report");
  report.inner_ = inner != report.whole().end() && inner->is_object();
  for (const char* key : {"planned_bytes", "counters", "steps", "waited_for"}) {
    const Json* found = At(report.report(), key);
    if (found != nullptr && found->is_object()) continue;
    return absl::InvalidArgumentError(fmt::format(
        "{} is no report of a run, since it has no '{}': write engine.report() as JSON, what "
        "sluice_report gives, or the demo's --json",
        source, key));
  }
  return report;
}

std::optional<double> RunReport::NumberAt(const Json& object, std::string_view path) {
  const Json* const found = At(object, path);
  if (found == nullptr || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

std::string RunReport::WordAt(const Json& object, std::string_view path) {
  const Json* const found = At(object, path);
  return found == nullptr || !found->is_string() ? "" : found->get<std::string>();
}

bool RunReport::Flag(std::string_view path) const {
  const Json* const found = At(report(), path);
  return found != nullptr && found->is_boolean() && found->get<bool>();
}

const Json* RunReport::List(std::string_view path) const {
  const Json* const found = At(report(), path);
  return found == nullptr || !found->is_array() ? nullptr : found;
}

std::vector<std::optional<double>> RunReport::Numbers(std::string_view path) const {
  std::vector<std::optional<double>> numbers;
  const Json* const list = List(path);
  if (list == nullptr) return numbers;
  for (const Json& one : *list)
    numbers.push_back(one.is_number() ? std::optional(one.get<double>()) : std::nullopt);
  return numbers;
}

std::vector<std::string> RunReport::Words(std::string_view path) const {
  std::vector<std::string> words;
  const Json* const list = List(path);
  if (list == nullptr) return words;
  for (const Json& one : *list) {
    if (one.is_string()) words.push_back(one.get<std::string>());
  }
  return words;
}

std::vector<const Json*> RunReport::Objects(std::string_view path) const {
  std::vector<const Json*> objects;
  const Json* const list = List(path);
  if (list == nullptr) return objects;
  for (const Json& one : *list) {
    if (one.is_object()) objects.push_back(&one);
  }
  return objects;
}

}  // namespace sluice::tools
