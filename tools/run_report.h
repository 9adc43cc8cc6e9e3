// tools/run_report.h
//
// The report of a run, as sluice_report or the demo's --json wrote it, asked for figures by name.
// It comes from outside: a figure that is not there, or is something else than a number, is none.

#ifndef SLUICE_TOOLS_RUN_REPORT_H_
#define SLUICE_TOOLS_RUN_REPORT_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/json_file.h"

namespace sluice::tools {

class RunReport {
 public:
  // Errors: those of ReadJsonFile; InvalidArgument if it is no report.
  static absl::StatusOr<RunReport> Read(const std::string& path);
  // The file that holds `whole`. source: for messages.
  static absl::StatusOr<RunReport> Of(Json whole, const std::string& source);

  // `path`: keys with dots between, as docs/api.md lists them.
  std::optional<double> Number(std::string_view path) const { return NumberAt(report(), path); }
  double NumberOr0(std::string_view path) const { return Number(path).value_or(0); }
  bool Flag(std::string_view path) const;  // whether it is true
  std::string Word(std::string_view path) const { return WordAt(report(), path); }
  // Numbers of a list; null, and what is no number, is none.
  std::vector<std::optional<double>> Numbers(std::string_view path) const;
  std::vector<std::string> Words(std::string_view path) const;
  // The objects of a list.
  std::vector<const Json*> Objects(std::string_view path) const;
  const std::string& source() const { return source_; }
  const Json& whole() const { return *whole_; }  // the file
  const Json& report() const { return inner_ ? whole().at("report") : whole(); }

  static std::optional<double> NumberAt(const Json& object, std::string_view path);
  static std::string WordAt(const Json& object, std::string_view path);  // "": there is none

 private:
  const Json* List(std::string_view path) const;

  std::shared_ptr<const Json> whole_;
  bool inner_ = false;  // it is what the file has under "report"
  std::string source_;
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_REPORT_H_
