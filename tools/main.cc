// The `sluice` command: reads the command line and runs one command.

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

// "sluice bench adam": the innermost command that was given.
std::string FullName(const CLI::App* app) {
  std::string name = app->get_parent() == nullptr ? "sluice" : app->get_name();
  const auto parsed = app->get_subcommands();  // at most one
  return parsed.empty() ? name : name + " " + FullName(parsed.front());
}

// What to say of a word that is none of the commands of `app`.
ExitCode NoCommand(const std::string& word, const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  const std::optional<std::string> nearest = NearestName(word, names);
  const std::string name = app.get_parent() == nullptr ? "sluice" : "sluice " + app.get_name();
  Fail(fmt::format("'{}' is not a command{}; {}", word,
                   app.get_parent() == nullptr ? "" : fmt::format(" of `{}`", name),
                   nearest ? fmt::format("did you mean '{}'?", *nearest)
                           : fmt::format("`{} --help` lists them", name)));
  return kUsage;
}

// The command that lacks one of its own, where `word` is none of them: `sluice` or `sluice bench`.
const CLI::App* Lacking(const CLI::App& app, int argc, const char* const* argv) {
  const auto parsed = app.get_subcommands();
  if (parsed.empty()) return argc > 1 && argv[1][0] != '-' ? &app : nullptr;
  const CLI::App* const command = parsed.front();
  const bool has_own = !command->get_subcommands([](const CLI::App*) { return true; }).empty();
  const bool given = argc > 2 && argv[2][0] != '-' && command->get_subcommands().empty();
  return has_own && given ? command : nullptr;
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
    const std::string name = FullName(failed);
    return fmt::format("{}: {}\n`{} --help` lists the options.\n", name, error.what(), name);
  });
  const std::vector<Command> commands = {AddDoctor(&app), AddPlan(&app), AddBench(&app),
                                         AddCkpt(&app)};
  app.add_subcommand(kLaunch, kLaunchAbout);
  if (argc < 2) {
    fmt::print(stderr, "{}", app.help());
    return kUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {  // also --help and --version
    const auto code = static_cast<CLI::ExitCodes>(e.get_exit_code());
    const CLI::App* const lacking = Lacking(app, argc, argv);
    if (lacking != nullptr &&
        (code == CLI::ExitCodes::ExtrasError || code == CLI::ExitCodes::RequiredError))
      return NoCommand(argv[lacking == &app ? 1 : 2], *lacking);
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
