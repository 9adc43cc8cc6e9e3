#include "nvme/tuned_use.h"

#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "core/json_text.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "nvme/drive_info.h"
#include "nvme/file_system.h"

namespace sluice {

namespace {

constexpr uint32_t kDepthMax = 1024;  // what a run takes

std::string OrUnknown(const std::string& text) { return text.empty() ? "not known" : text; }

bool HasHardware(const DriveIdentity& d) {
  return !d.model.empty() || !d.serial.empty() || d.size > Bytes(0);
}

// As far as both are known. Names of devices change from one start to the next, so they count only
// where nothing else is known.
bool SameDrive(const DriveIdentity& a, const DriveIdentity& b) {
  if (a.file_system != b.file_system) return false;
  if (HasHardware(a) || HasHardware(b))
    return a.model == b.model && a.serial == b.serial && a.size == b.size;
  return a.device == b.device;
}

std::string InWords(const DriveIdentity& d) {
  std::string text = d.device.empty() ? "no drive that the kernel knows" : d.device;
  if (!d.model.empty()) text += ", " + d.model;
  if (!d.serial.empty()) text += ", serial " + d.serial;
  if (d.size > Bytes(0)) text += fmt::format(", {} bytes", d.size.value());
  return fmt::format("{} on {}", d.file_system, text);
}

// Which of the file's paths `drive` is.
std::optional<size_t> Find(const Tuned& tuned, const DriveIdentity& drive) {
  for (size_t i = 0; i < tuned.paths.size(); ++i)
    if (tuned.paths[i].drive.path == drive.path) return i;
  for (size_t i = 0; i < tuned.paths.size(); ++i) {
    const DriveIdentity& known = tuned.paths[i].drive;
    if ((HasHardware(known) || !known.device.empty()) && SameDrive(known, drive)) return i;
  }
  return std::nullopt;
}

void CompareMachines(const MachineIdentity& then, const MachineIdentity& now,
                     const std::string& source, std::vector<std::string>* warnings) {
  if (then.host != now.host || then.cpu != now.cpu) {
    warnings->push_back(
        fmt::format("{} was tuned on another machine ({}, {}; this is {}, {}): run sluice tune "
                    "again",
                    source, then.host, then.cpu, now.host, now.cpu));
  } else if (then.kernel != now.kernel) {
    warnings->push_back(
        fmt::format("{} was tuned under another kernel ({}; this is {}): run sluice tune again",
                    source, then.kernel, now.kernel));
  }
}

}  // namespace

MachineIdentity ThisMachine() {
  MachineIdentity machine;
  utsname name{};
  if (uname(&name) == 0) {
    machine.host = ValidUtf8(name.nodename);
    machine.kernel = ValidUtf8(name.release);
  }
  if (const auto topology = DetectTopology(); topology.ok())
    machine.cpu = ValidUtf8(topology->cpu_model);
  machine.host = OrUnknown(machine.host);
  machine.cpu = OrUnknown(machine.cpu);
  machine.kernel = OrUnknown(machine.kernel);
  return machine;
}

DriveIdentity IdentityOf(const FileReader& read, const std::string& path) {
  std::error_code ignored;
  std::string absolute = std::filesystem::weakly_canonical(path, ignored).string();
  if (absolute.empty()) absolute = std::filesystem::absolute(path, ignored).string();
  if (absolute.size() > 1 && absolute.ends_with('/')) absolute.pop_back();
  DriveIdentity identity{.path = ValidUtf8(absolute), .file_system = FileSystemOf(path).name};
  if (const std::optional<DriveInfo> drive = FindDriveOf(read, path)) {
    identity.device = ValidUtf8(drive->name);
    identity.model = ValidUtf8(drive->model);
    identity.serial = ValidUtf8(drive->serial);
    identity.size = drive->size.value_or(Bytes(0));
  }
  return identity;
}

TunedChoice ChooseTuned(const Tuned& tuned, const std::string& source,
                        const MachineIdentity& machine, std::span<const DriveIdentity> drives) {
  TunedChoice choice{.settings = tuned.set, .rates = {}, .warnings = {}};
  CompareMachines(tuned.machine, machine, source, &choice.warnings);
  std::set<size_t> found;
  uint32_t depth = 0;
  for (const DriveIdentity& drive : drives) {
    const std::optional<size_t> at = Find(tuned, drive);
    if (!at) {
      choice.warnings.push_back(
          fmt::format("{} is not in {}: run sluice tune again, with it", drive.path, source));
      continue;
    }
    const auto& [known, settings] = tuned.paths[*at];
    if (!SameDrive(known, drive)) {
      choice.warnings.push_back(
          fmt::format("{} was another drive when it was tuned ({}; now {}), says {}: run sluice "
                      "tune again",
                      drive.path, InWords(known), InWords(drive), source));
    }
    found.insert(*at);
    choice.rates.push_back({.read = settings.read_rate, .write = settings.write_rate});
    depth += settings.depth;
    if (drives.size() == 1) choice.settings = settings;
  }
  if (choice.rates.size() < drives.size()) choice.rates.clear();
  if (drives.size() > 1 && !found.empty() && found.size() < tuned.paths.size())
    choice.settings.depth = std::min(depth, kDepthMax);
  choice.settings.batch = std::min(choice.settings.batch, choice.settings.depth);
  return choice;
}

}  // namespace sluice
