// `sluice doctor`: DoctorJson for people.

#include "offload/run/doctor.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tools/command.h"
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

ExitCode RunDoctor(const std::string& path, bool as_json) {
  Json report = Json::parse(DoctorJson(path));
  Page page;
  Errors errors;
  page.Section("Found");
  AddRows(report, kFound, &page, &errors);
  page.Section("Chosen");
  AddRows(report, kChosen, &page, &errors);
  if (path.empty()) page.Row("swap directory", "none looked at: sluice doctor DIR");
  page.List("Advice", report["advice"].get<std::vector<std::string>>());
  const ExitCode printed = Print(as_json ? report.dump(2) + "\n" : page.Text());
  if (printed != kDone || errors.empty()) return printed;
  for (const std::string& error : errors) Fail(error);
  return kFailed;
}

}  // namespace

Command AddDoctor(CLI::App* application) {
  struct Options {
    std::string path;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* app = application->add_subcommand(
      "doctor", "What was found here, what is chosen, and what to do about what is missing");
  app->add_option("PATH,--nvme-path,--path", options->path,
                  "A directory that could hold swap files; looked at too")
      ->type_name("DIR");
  app->add_flag("--json", options->json, "The whole report as JSON (docs/api.md lists the keys)");
  return {.app = app, .run = [options] { return RunDoctor(options->path, options->json); }};
}

}  // namespace sluice::tools
