// `sluice bench`: its commands, and what all of them take.

#include <memory>
#include <string>

#include "fmt/format.h"
#include "tools/bench_compare.h"
#include "tools/bench_report.h"
#include "tools/command.h"

namespace sluice::tools {

namespace {

constexpr const char* kFooter =
    "\nEach measures in turn, again and again, what is compared: medians count.\n"
    "Keys of the JSON: docs/api.md. What was measured where: docs/benchmarks.md.\n\n"
    "Examples:\n"
    "  sluice bench compare before.json after.json";

Command AddCompare(CLI::App* bench) {
  struct Options {
    std::string a;
    std::string b;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* app = bench->add_subcommand(
      "compare", "What changed from one report (--json) of a benchmark to another");
  app->footer(
      "\nExit status: 0 nothing is worse; 1 something is; 2 not understood, or not to be "
      "compared.");
  app->add_option("A", options->a, "The first report")->type_name("FILE")->required();
  app->add_option("B", options->b, "The second")->type_name("FILE")->required();
  app->add_flag("--json", options->json, "The comparison as JSON");
  return {.app = app,
          .run = [options] { return RunBenchCompare(options->a, options->b, options->json); }};
}

}  // namespace

Command AddBench(CLI::App* application) {
  CLI::App* app = application->add_subcommand("bench", "Measure what parts of Sluice do here");
  app->require_subcommand(1);
  app->footer(kFooter);
  const std::vector<Command> commands = {AddCompare(app)};
  return {.app = app, .run = [commands] {
            for (const Command& command : commands) {
              if (command.app->parsed()) return command.run();
            }
            return kUsage;
          }};
}

}  // namespace sluice::tools
