// The `sluice` command: reads the command line and runs one command.

#include <algorithm>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "fmt/format.h"
#include "offload/sluice.h"
#include "tools/command.h"
#include "tools/launch.h"

namespace sluice::tools {

namespace {

constexpr const char* kFooter =
    "\nExit status: 0 done; 1 it can't be done here, and why; 2 not understood.\n"
    "`sluice COMMAND --help` lists the options of a command.";

// What to say of a first word that is no command.
ExitCode NoCommand(const std::string& word, const std::vector<Command>& commands) {
  std::vector<std::string> names;
  names.reserve(commands.size() + 1);
  for (const Command& command : commands) names.push_back(command.app->get_name());
  names.emplace_back(kLaunch);
  const std::optional<std::string> nearest = NearestName(word, names);
  Fail(fmt::format(
      "'{}' is not a command; {}", word,
      nearest ? fmt::format("did you mean '{}'?", *nearest) : "`sluice --help` lists them"));
  return kUsage;
}

ExitCode Run(int argc, const char* const* argv) {
  if (argc > 1 && std::string_view(argv[1]) == kLaunch)  // flags that are not ours to read
    return Launch(std::span(argv + 2, argv + argc));
  CLI::App app(
      "Sluice keeps a model's parameters and optimizer states on HBM, pinned RAM and NVMe.",
      "sluice");
  app.set_version_flag(
      "--version", fmt::format("sluice {} (C ABI version {})", SLUICE_VERSION, SLUICE_ABI_VERSION));
  app.footer(kFooter);
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    const auto parsed = failed->get_subcommands();  // at most one
    const std::string name =
        parsed.empty() ? failed->get_name() : "sluice " + parsed.front()->get_name();
    return fmt::format("{}: {}\n`{} --help` lists the options.\n", name, error.what(), name);
  });
  const std::vector<Command> commands = {AddDoctor(&app), AddPlan(&app)};
  app.add_subcommand(kLaunch, kLaunchAbout);
  if (argc < 2) {
    fmt::print(stderr, "{}", app.help());
    return kUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {  // also --help and --version
    const bool command_given = std::any_of(commands.begin(), commands.end(),
                                           [](const Command& c) { return c.app->parsed(); });
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) && !command_given &&
        argv[1][0] != '-')
      return NoCommand(argv[1], commands);
    return app.exit(e) == 0 ? kDone : kUsage;
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  return kDone;
}

}  // namespace

}  // namespace sluice::tools

int main(int argc, char** argv) {
  try {
    return sluice::tools::Run(argc, argv);
  } catch (const std::exception& e) {  // a third party's
    return sluice::tools::Fail(e.what());
  }
}
