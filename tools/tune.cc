// `sluice tune`: finds how drives move bytes fastest, and writes that for runs to load.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "core/config.h"
#include "core/file_bytes.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/drive_tuner.h"
#include "nvme/tuned.h"
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/json_file.h"
#include "tools/tune_drives.h"
#include "tools/tune_page.h"

namespace sluice::tools {

namespace {

struct TuneCommand {
  TuneOptions tune;
  std::string max_write;
  std::string output{kTunedFile};
  bool yes = false;
  bool json = false;
};

// What a run in another directory calls it.
std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::string absolute = std::filesystem::absolute(path, error).lexically_normal().string();
  return error ? path : absolute;
}

// Whether the file could be written at the end, before anything is measured for it.
absl::Status CheckOutput(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!std::filesystem::is_directory(folder, ignored))
    return absl::NotFoundError(fmt::format("{}: there is no directory {}", path, folder.string()));
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))
    return absl::InvalidArgumentError(fmt::format("{} is not a regular file", path));
  if (std::filesystem::exists(path, ignored) && !ReadTuned(path).ok()) {
    return absl::InvalidArgumentError(fmt::format(
        "{} is there, and holds no tuned settings: remove it, or give another name", path));
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0)
    return ErrnoStatus(errno, fmt::format("writing to {}", folder.string()));
  return absl::OkStatus();
}

// What is about to be done, and whether it may be: a person at a terminal is asked.
ExitCode Ask(const TuneCommand& command, const TunePlan& plan) {
  std::string text;
  for (const TunePlan::Path& path : plan.paths) {
    text += fmt::format(
        "{}: at most {} are written, to a file of {} without a name, which is gone at the end, in "
        "at most {:.0f} s\n",
        path.path, FormatBytes(command.tune.write_max), FormatBytes(path.file),
        command.tune.seconds);
    for (const std::string& warning : path.warnings) text += "warning: " + warning + "\n";
  }
  fmt::print(stderr, "{}", text);
  if (command.yes) return kDone;
  if (isatty(STDIN_FILENO) != 1 || isatty(STDERR_FILENO) != 1) {
    Fail("tune: there is no terminal to ask whether so much may be written: give --yes");
    return kUsage;
  }
  fmt::print(stderr, "Go on? [y/N] ");
  std::fflush(stderr);
  char line[16] = {};
  const bool yes =
      std::fgets(line, sizeof(line), stdin) != nullptr && (line[0] == 'y' || line[0] == 'Y');
  return yes ? kDone : Fail("tune: nothing was written");
}

ExitCode RunTune(TuneCommand command) {
  const auto fail = [](const absl::Status& status) {
    return Fail(fmt::format("tune: {}", Message(status)));
  };
  if (!command.max_write.empty()) command.tune.write_max = *ParseBytes(command.max_write);
  const std::string output = Absolute(command.output);
  if (const absl::Status status = CheckOutput(output); !status.ok()) return fail(status);
  const absl::StatusOr<TunePlan> plan = PlanTune(command.tune);
  if (!plan.ok()) return fail(plan.status());
  if (const ExitCode code = Ask(command, *plan); code != kDone) return code;
  const std::atomic<bool>& stopped = NoteInterrupts();
  absl::StatusOr<TuneResult> result;
  {
    const Progress progress;
    result = TuneDrives(command.tune, *plan, progress, &stopped);
  }
  if (absl::IsCancelled(result.status()))
    return Fail("tune: stopped; its files are gone, and no settings were written");
  if (!result.ok()) return fail(result.status());
  if (const absl::Status written = ReplaceFile(output, TunedText(result->ForFile())); !written.ok())
    return fail(written);
  return Print(command.json ? Text(TuneJson(*result, output)) + "\n" : TunePage(*result, output));
}

}  // namespace

Command AddTune(CLI::App* application) {
  const auto options = std::make_shared<TuneCommand>();
  CLI::App* app = application->add_subcommand(
      "tune", "Find how drives move bytes fastest, and write that for runs to load");
  app->add_option("PATH,--nvme-path", options->tune.paths, "Directories, one on each drive")
      ->type_name("DIR")
      ->required();
  app->add_flag("-y,--yes", options->yes, "Don't ask whether so much may be written");
  app->add_option("--max-write", options->max_write, "To each path, at most [default: 16GiB]")
      ->type_name("SIZE")
      ->check([](const std::string& text) { return Complaint(ParseBytes(text)); });
  app->add_option("--seconds", options->tune.seconds, "A path at most")
      ->check(CLI::Range(2.0, 3600.0))
      ->capture_default_str();
  app->add_option("-o,--output", options->output, "Where to write the settings")
      ->type_name("FILE")
      ->capture_default_str();
  app->add_flag("--json", options->json, "What was found as JSON (docs/api.md lists the keys)");
  app->footer(
      "\nMeasures on a file without a name, which is gone at the end, however that comes. Writing\n"
      "wears drives: it says how much at most, and asks. The settings: docs/tuning.md.\n\n"
      "Examples:\n"
      "  sluice tune /mnt/nvme\n"
      "  sluice tune /mnt/nvme0 /mnt/nvme1 --yes -o tuned.json\n"
      "  sluice tune /mnt/nvme --max-write 8GiB --seconds 30 --json");
  return {.app = app, .run = [options] { return RunTune(*options); }};
}

}  // namespace sluice::tools
