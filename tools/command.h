// tools/command.h
//
// The commands of `sluice`. Each adds itself to the command line and gives back what to run if it
// was the one asked for; options are checked while the line is parsed.

#ifndef SLUICE_TOOLS_COMMAND_H_
#define SLUICE_TOOLS_COMMAND_H_

#include <functional>
#include <string>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/status/statusor.h"
#include "core/status.h"
#include "tools/output.h"

namespace sluice::tools {

// "" or why `text` can't be read: what CLI11 asks of a check.
template <typename T>
std::string Complaint(const absl::StatusOr<T>& parsed) {
  return parsed.ok() ? "" : std::string(Message(parsed.status()));
}

struct Command {
  CLI::App* app = nullptr;  // owned by the application
  std::function<ExitCode()> run;
};

// What was found on this machine, what is chosen, and what to do about what is missing.
Command AddDoctor(CLI::App* application);

// What would be placed where, and what a step would move.
Command AddPlan(CLI::App* application);

// What parts of it do on this machine, and what changed between two such reports.
Command AddBench(CLI::App* application);

// Which checkpoints there are, what is in them, whether they are whole; and their weights, for
// others.
Command AddCkpt(CLI::App* application);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_COMMAND_H_
