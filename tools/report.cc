// `sluice report`: a run as a page for people.

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "core/file_bytes.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/command.h"
#include "tools/run_page.h"

namespace sluice::tools {

namespace {

struct Options {
  std::string run;
  std::string trace;
  std::string output = "run.html";
};

// Whether the page would take the place of what it is made of.
bool IsInput(const Options& options) {
  std::error_code ignored;
  const auto same = [&](const std::string& input) {
    return !input.empty() && std::filesystem::equivalent(input, options.output, ignored);
  };
  return same(options.run) || same(options.trace);
}

ExitCode RunReportCommand(const Options& options) {
  const auto refused = [](const absl::Status& status) {
    Fail(Message(status));
    return kUsage;
  };
  const absl::StatusOr<RunReport> report = RunReport::Read(options.run);
  if (!report.ok()) return refused(report.status());
  std::optional<RunTrace> trace;
  if (!options.trace.empty()) {
    absl::StatusOr<RunTrace> read = ReadRunTrace(options.trace);
    if (!read.ok()) return refused(read.status());
    trace = *std::move(read);
  }
  const std::string page = RunPageHtml(*report, trace ? &*trace : nullptr);
  if (options.output == "-") return Print(page);
  if (IsInput(options))
    return Fail(fmt::format("{} is what the page is made of: give another name", options.output));
  if (const absl::Status written = ReplaceFile(options.output, page); !written.ok())
    return Fail(Message(written));
  return Print(fmt::format("{}: open it in a browser\n", options.output));
}

}  // namespace

Command AddReport(CLI::App* application) {
  const auto options = std::make_shared<Options>();
  CLI::App* app = application->add_subcommand(
      "report", "A run as a page of HTML: what was waited for, the floor, and what to change");
  app->add_option("RUN", options->run,
                  "engine.report() as JSON, what sluice_report gives, or the demo's --json")
      ->type_name("FILE")
      ->required();
  app->add_option("--trace", options->trace, "The trace of the same run, for a picture of a step")
      ->type_name("FILE");
  app->add_option("-o,--output", options->output, "Where to write the page; -: to standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app->footer(
      "\nExamples:\n  examples/train_gpt.py --json run.json --trace trace.json\n"
      "  sluice report run.json --trace trace.json -o run.html\n");
  return {.app = app, .run = [options] { return RunReportCommand(*options); }};
}

}  // namespace sluice::tools
