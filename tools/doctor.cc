// `sluice doctor`: DoctorJson for people.

#include "offload/run/doctor.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/json_text.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tools/bench_report.h"
#include "tools/command.h"
#include "tools/doctor_measure.h"
#include "tools/json_file.h"

namespace sluice::tools {

namespace {

std::string BytesOf(const Json& object, const char* key) {
  return FormatBytes(Bytes(object.value(key, int64_t{0})));
}

std::string Plural(int64_t n, const char* noun) {
  return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

std::string CpuText(const Json& cpu) {
  return fmt::format("{}; {} of {} may be used; {}", cpu.value("model", "unknown model"),
                     cpu.value("cores_allowed", 0), Plural(cpu.value("cores_machine", 0), "core"),
                     Plural(cpu.value("numa_nodes", 0), "NUMA node"));
}

std::string MemoryText(const Json& memory) {
  std::string text = fmt::format("{} available of {}", BytesOf(memory, "available_bytes"),
                                 BytesOf(memory, "machine_bytes"));
  if (memory.contains("cgroup_limit_bytes")) {
    text += fmt::format("; the cgroup allows {} and has used {} ({})",
                        BytesOf(memory, "cgroup_limit_bytes"), BytesOf(memory, "cgroup_used_bytes"),
                        memory.value("cgroup_path", ""));
  }
  return text;
}

std::string LockedText(const Json& limit) {
  const auto bytes = limit.get<int64_t>();
  return bytes < 0 ? "no limit" : fmt::format("at most {}", FormatBytes(Bytes(bytes)));
}

std::string PathText(const Json& path) {
  return fmt::format("{}; {} free", path.value("description", ""), BytesOf(path, "free_bytes"));
}

std::string DriveText(const Json& path) {
  if (!path.contains("drive") || path["drive"].is_null()) return "none that the kernel knows";
  const Json& drive = path["drive"];
  std::string text = drive.value("name", "");
  for (const char* key : {"model", "bus"}) {
    if (drive[key].is_string()) text += fmt::format(", {}", drive[key].get<std::string>());
  }
  if (!drive["numa_node"].is_null()) {
    text += fmt::format(", NUMA node {}", drive["numa_node"].get<int>());
    if (!drive["numa_distance"].is_null())
      text += fmt::format(" (distance {})", drive["numa_distance"].get<int>());
  }
  return text;
}

std::string RateText(const Json& measured, const char* first, const char* first_key,
                     const char* second, const char* second_key) {
  if (measured[first_key].is_null() || measured[second_key].is_null())
    return "could not be measured";
  return fmt::format("{} GB/s {}, {} GB/s {}", FigureText(measured[first_key].get<double>()), first,
                     FigureText(measured[second_key].get<double>()), second);
}

void AddMeasured(const Json& measured, Page* page) {
  page->Section("Measured, for a moment");
  page->Row("memory",
            RateText(measured, "read", "memory_read_gb_per_s", "copied", "memory_copy_gb_per_s"));
  if (!measured["drive_written_bytes"].is_null()) {
    page->Row("drive",
              RateText(measured, "read", "drive_read_gb_per_s", "written", "drive_write_gb_per_s") +
                  fmt::format("; {} were written", BytesOf(measured, "drive_written_bytes")));
  }
  if (!measured["to_gpu_gb_per_s"].is_null()) {
    page->Row("GPU's link",
              RateText(measured, "to it", "to_gpu_gb_per_s", "from it", "from_gpu_gb_per_s"));
  }
  for (const Json& error : measured["errors"]) page->Row("error", error.get<std::string>());
}

// One row of the page: the report's key, what people call it, and how its value reads.
struct Row {
  const char* key;
  const char* label;
  std::string (*text)(const Json&);
};
std::string Plain(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}
constexpr Row kFound[] = {{"cpu", "CPU", CpuText},
                          {"memory", "memory", MemoryText},
                          {"memlock_limit_bytes", "locked memory", LockedText}};
constexpr Row kChosen[] = {{"device", "device", Plain},
                           {"vector_target", "vector target", Plain},
                           {"huge_pages", "buffers", Plain},
                           {"engine", "I/O engine", Plain},
                           {"path", "swap directory", PathText}};

struct DoctorOptions {
  std::string path;
  bool measure = true;
  bool json = false;
};

// What the report has an error for, by label. It may not be used.
using Errors = std::vector<std::string>;

void AddRows(const Json& report, std::span<const Row> rows, Page* page, Errors* errors) {
  for (const Row& row : rows) {
    if (!report.contains(row.key)) continue;
    const Json& value = report[row.key];
    if (value.is_object() && value.contains("error")) {
      const auto error = value["error"].get<std::string>();
      page->Row(row.label, fmt::format("error: {}", error));
      errors->push_back(fmt::format("{}: {}", row.label, error));
    } else {
      page->Row(row.label, row.text(value));
    }
  }
}

// 2 if it can't run: elsewhere that is for what was not understood.
ExitCode CodeOf(const Json& report) {
  const std::string verdict = report.value("verdict", "");
  return verdict == "fine" ? kDone : verdict == "slower" ? kFailed : kUsage;
}

ExitCode RunDoctor(const DoctorOptions& options) {
  Json report = Json::parse(DoctorJson(options.path));
  const bool path_works = report.contains("path") && !report["path"].contains("error");
  if (options.measure) report["measured"] = DoctorMeasure(path_works ? options.path : "");
  Page page;
  Errors errors;
  page.Section("Found");
  AddRows(report, kFound, &page, &errors);
  if (path_works) page.Row("drive", DriveText(report["path"]));
  page.Section("Chosen");
  AddRows(report, kChosen, &page, &errors);
  if (options.path.empty()) page.Row("swap directory", "none looked at: sluice doctor DIR");
  if (options.measure) AddMeasured(report["measured"], &page);
  page.List("Advice", report["advice"].get<std::vector<std::string>>());
  ExitCode verdict = CodeOf(report);
  if (options.measure && verdict == kDone && !report["measured"]["errors"].empty())
    verdict = kFailed;
  if (options.measure && report["measured"].contains("drive_error")) verdict = kUsage;
  page.Section("Together");
  page.Row("verdict",
           verdict == kDone ? "fine"
           : verdict == kFailed
               ? "it runs, and slower than it could, or not all of it was measured: see above"
               : "it can't run like this: see above");
  const ExitCode printed = Print(options.json ? JsonText(report, 2) + "\n" : page.Text());
  for (const std::string& error : errors) Fail(error);
  return printed == kDone ? verdict : printed;
}

}  // namespace

Command AddDoctor(CLI::App* application) {
  const auto options = std::make_shared<DoctorOptions>();
  CLI::App* app = application->add_subcommand(
      "doctor", "What was found here, what is chosen, and what to do about what is missing");
  app->footer(
      "\nExit status: 0 fine; 1 it runs, and slower than it could; 2 it can't run, or was not "
      "understood.\n\n"
      "Examples:\n"
      "  sluice doctor /mnt/nvme\n"
      "  sluice doctor /mnt/nvme --no-measure --json");
  app->add_option("PATH,--nvme-path,--path", options->path,
                  "A directory that could hold swap files; looked at too")
      ->type_name("DIR");
  app->add_flag("!--no-measure", options->measure,
                "Look only; otherwise memory, drive and links are measured for about a second");
  app->add_flag("--json", options->json, "The whole report as JSON (docs/api.md lists the keys)");
  return {.app = app, .run = [options] { return RunDoctor(*options); }};
}

}  // namespace sluice::tools
