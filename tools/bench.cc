// `sluice bench`: its commands, and what all of them take.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/bench_cases.h"
#include "tools/bench_compare.h"
#include "tools/bench_report.h"
#include "tools/command.h"

namespace sluice::tools {

namespace {

constexpr const char* kFooter =
    "\nWhat is compared is measured in turn, again and again: medians count.\n"
    "Keys of the JSON: docs/api.md. What was measured where: docs/benchmarks.md.\n\n"
    "Examples:\n"
    "  sluice bench adam\n"
    "  sluice bench io /mnt/nvme\n"
    "  sluice bench copy --json > before.json\n"
    "  sluice bench compare before.json after.json";

ExitCode PrintBench(const absl::StatusOr<BenchReport>& report, bool as_json) {
  if (!report.ok()) return Fail(Message(report.status()));
  return Print(as_json ? JsonText(BenchJson(*report), 2) + "\n" : BenchPage(*report));
}

struct BenchKind {
  const char* name;
  const char* about;
  absl::StatusOr<BenchReport> (*measure)(const BenchOptions&);
};
constexpr BenchKind kKinds[] = {
    {"adam", "The optimizer's arithmetic, against the memory's rate", BenchAdam},
    {"copy", "Memory of each NUMA node, and the link to each GPU and back", BenchCopy},
    {"control", "What the control thread and its plans cost", BenchControl},
};

Command AddKind(CLI::App* bench, const BenchKind& kind) {
  struct Options {
    BenchOptions bench;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* app = bench->add_subcommand(kind.name, kind.about);
  app->add_option("--seconds", options->bench.seconds, "About how long to measure")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app->add_flag("--json", options->json, "The report as JSON (docs/api.md lists the keys)");
  return {.app = app, .run = [options, measure = kind.measure] {
            return PrintBench(measure(options->bench), options->json);
          }};
}

// What a run with that file would do in that directory. Nothing without a file.
absl::Status TakeTuned(const std::string& file, IoBenchOptions* options) {
  if (file.empty()) return absl::OkStatus();
  RuntimeConfig config;
  config.nvme_paths = {options->path};
  config.engine = options->engine;
  if (options->engine != IoEngineKind::kAuto) config.io_settings.engine = SettingFrom::kGiven;
  SLUICE_RETURN_IF_ERROR(ApplyTuned(file, &config));
  constexpr int64_t kStateBytes = 12;
  options->engine = config.engine;
  options->limits = config.io;
  options->block =
      Bytes(kStateBytes * ChunkElementsOf(config.request, Bytes(kStateBytes * kCellElements)));
  options->notes = config.io_settings.warnings;
  options->notes.push_back(fmt::format("with {}: {} a transfer, {} in flight", file,
                                       FormatBytes(options->block), config.io.in_flight_max));
  return absl::OkStatus();
}

Command AddIo(CLI::App* bench) {
  struct Options {
    IoBenchOptions bench;
    std::string size;
    std::string engine = "auto";
    std::string tuned;
    bool json = false;
  };
  static const std::map<std::string, IoEngineKind> kEngines = {{"auto", IoEngineKind::kAuto},
                                                               {"io_uring", IoEngineKind::kIoUring},
                                                               {"libaio", IoEngineKind::kLibaio},
                                                               {"threads", IoEngineKind::kThreads}};
  const auto options = std::make_shared<Options>();
  CLI::App* app =
      bench->add_subcommand("io", "A drive, as a run uses it, beside fio on the same bytes");
  app->footer(
      "\nWrites to a file without a name, which is gone at the end, however that comes.\n\n"
      "Examples:\n"
      "  sluice bench io /mnt/nvme --tuned sluice-tuned.json\n"
      "  sluice bench io /mnt/nvme --size 16GiB --seconds 300 --json > io.json");
  app->add_option("PATH,--nvme-path", options->bench.path, "A directory on the drive")
      ->type_name("DIR")
      ->capture_default_str();
  app->add_option("--size", options->size, "Of the file [default: 2GiB, or half of what is free]")
      ->type_name("SIZE")
      ->check([](const std::string& text) { return Complaint(ParseBytes(text)); });
  app->add_option("--tuned", options->tuned,
                  "What `sluice tune` wrote: how transfers are made; --engine goes before it")
      ->type_name("FILE");
  app->add_option("--engine", options->engine, "What moves bytes")
      ->check(CLI::IsMember({"auto", "io_uring", "libaio", "threads"}))
      ->capture_default_str();
  app->add_option("--seconds", options->bench.seconds, "About how long to measure")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  app->add_flag("--json", options->json, "The report as JSON (docs/api.md lists the keys)");
  return {.app = app, .run = [options] {
            if (!options->size.empty()) options->bench.size = *ParseBytes(options->size);
            options->bench.engine = kEngines.at(options->engine);
            if (const absl::Status status = TakeTuned(options->tuned, &options->bench);
                !status.ok())
              return Fail(Message(status));
            return PrintBench(BenchIo(options->bench), options->json);
          }};
}

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
  std::vector<Command> commands;
  for (const BenchKind& kind : kKinds) commands.push_back(AddKind(app, kind));
  commands.push_back(AddIo(app));
  commands.push_back(AddCompare(app));
  return {.app = app, .run = [commands] {
            for (const Command& command : commands) {
              if (command.app->parsed()) return command.run();
            }
            return kUsage;
          }};
}

}  // namespace sluice::tools
