// `sluice trace`: a recorded step, replayed with other budgets and rates.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/sim/replay.h"
#include "tools/command.h"
#include "tools/recorded_run.h"
#include "tools/replay_report.h"

namespace sluice::tools {

namespace {

// Texts were checked when the command line was parsed. Empty: as recorded.
struct Options {
  std::string trace;
  std::string hbm, pinned, nvme;
  std::string nvme_rate, link_rate;
  bool json = false;

  bool any() const {
    for (const std::string* one : {&hbm, &pinned, &nvme, &nvme_rate, &link_rate}) {
      if (!one->empty()) return true;
    }
    return false;
  }
};

// "3GB/s", or without "/s".
absl::StatusOr<Bytes> ParseRate(std::string_view text) {
  if (text.ends_with("/s")) text.remove_suffix(2);
  absl::StatusOr<Bytes> bytes = ParseBytes(text);
  if (bytes.ok() && *bytes > Bytes(0)) return bytes;
  return absl::InvalidArgumentError(
      fmt::format("'{}' is not a rate; write it like 3GB/s or 500MB/s", text));
}

ReplayOptions AsRecorded(const Recording& recording) {
  return {.budgets = recording.config.budgets, .rates = recording.rates.value_or(HardwareRates())};
}

ReplayOptions AsGiven(const Options& options, ReplayOptions with) {
  if (!options.hbm.empty()) with.budgets.hbm = *ParseBytes(options.hbm);
  if (!options.pinned.empty()) with.budgets.pinned = *ParseBytes(options.pinned);
  if (!options.nvme.empty()) with.budgets.nvme = *ParseBytes(options.nvme);
  if (!options.nvme_rate.empty())
    with.rates.nvme_bytes = static_cast<double>(ParseRate(options.nvme_rate)->value());
  if (!options.link_rate.empty())
    with.rates.copy_bytes = static_cast<double>(ParseRate(options.link_rate)->value());
  return with;
}

absl::StatusOr<std::vector<NamedReplay>> ReplayAll(const Recording& recording,
                                                   const Options& options) {
  std::vector<NamedReplay> replays;
  const auto add = [&](const char* name, const ReplayOptions& with) -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const Replay replay, ReplayStep(recording, with));
    replays.push_back({.name = name, .options = with, .replay = replay});
    return absl::OkStatus();
  };
  const ReplayOptions recorded = AsRecorded(recording);
  // Without its rates nobody knows how it would be.
  if (recording.rates) SLUICE_RETURN_IF_ERROR(add("as recorded", recorded));
  if (options.any()) SLUICE_RETURN_IF_ERROR(add("as given", AsGiven(options, recorded)));
  return replays;
}

ExitCode RunTraceCommand(const Options& options) {
  const absl::StatusOr<Recording> recording = ReadRecordedRun(options.trace);
  if (!recording.ok()) {
    Fail(Message(recording.status()));
    return kUsage;
  }
  if (!recording->rates && options.nvme_rate.empty()) {
    Fail(
        fmt::format("{} has no rates of its machine (set_rates() was not called in that run): "
                    "give --nvme-rate, and --link-rate if it matters",
                    options.trace));
    return kUsage;
  }
  const absl::StatusOr<std::vector<NamedReplay>> replays = ReplayAll(*recording, options);
  if (!replays.ok()) {
    if (options.json) Print(Text(Json{{"error", std::string(Message(replays.status()))}}) + "\n");
    return Fail(Message(replays.status()));
  }
  return Print(options.json ? ReplayJson(*recording, *replays).dump(2) + "\n"
                            : ReplayPage(*recording, *replays));
}

void AddSize(CLI::App* app, const char* name, std::string* text, const char* help) {
  app->add_option(name, *text, help)
      ->type_name("SIZE")
      ->check([](const std::string& given) { return Complaint(ParseBytes(given)); })
      ->group("Instead of what was recorded");
}

void AddRate(CLI::App* app, const char* name, std::string* text, const char* help) {
  app->add_option(name, *text, help)
      ->type_name("RATE")
      ->check([](const std::string& given) { return Complaint(ParseRate(given)); })
      ->group("Instead of what was recorded");
}

}  // namespace

Command AddTrace(CLI::App* application) {
  const auto options = std::make_shared<Options>();
  CLI::App* app = application->add_subcommand(
      "trace", "A recorded step, replayed: what it would take with other budgets and rates");
  app->add_option("TRACE", options->trace, "What write_trace() wrote, or the demo's --trace")
      ->type_name("FILE")
      ->required();
  AddSize(app, "--hbm", &options->hbm, "Budget of HBM");
  AddSize(app, "--pinned,--ram", &options->pinned, "Budget of pinned RAM");
  AddSize(app, "--nvme", &options->nvme, "Budget of NVMe");
  AddRate(app, "--nvme-rate", &options->nvme_rate,
          "Of all drives together, reads and writes mixed, like 3GB/s");
  AddRate(app, "--link-rate", &options->link_rate, "Of copies into HBM and out of it, each");
  app->add_flag("--json", options->json, "As JSON (docs/api.md lists the keys)");
  app->footer(
      "\nThe runtime itself plans and decides, over simulated drives, workers and a link: nothing\n"
      "of the machine is used. Examples:\n"
      "  examples/train_gpt.py --trace trace.json\n"
      "  sluice trace trace.json --pinned 64GiB\n"
      "  sluice trace trace.json --nvme-rate 12GB/s --link-rate 25GB/s");
  return {.app = app, .run = [options] { return RunTraceCommand(*options); }};
}

}  // namespace sluice::tools
