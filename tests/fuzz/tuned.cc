// Files of tuned settings: what is taken is what would be written, and serves any drives.

#include "nvme/tuned.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "nvme/tuned_use.h"

using namespace sluice;  // NOLINT: the fuzzer's entry is outside the namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tuned = ParseTuned(std::string(reinterpret_cast<const char*>(data), size), "input");
  if (!tuned.ok()) {
    SLUICE_CHECK(Message(tuned.status()).starts_with("input"));
    return 0;
  }
  const auto again = ParseTuned(TunedText(*tuned), "again");
  SLUICE_CHECK(again.ok() && *again == *tuned);
  std::vector<DriveIdentity> drives;
  for (const Tuned::Path& path : tuned->paths) drives.push_back(path.drive);
  const TunedChoice choice = ChooseTuned(*tuned, "input", tuned->machine, drives);
  SLUICE_CHECK(choice.warnings.empty() && choice.rates.size() == drives.size());
  drives.push_back({.path = "/mnt/other", .file_system = "ext4"});
  const TunedSettings settings = ChooseTuned(*tuned, "input", {}, drives).settings;
  SLUICE_CHECK(settings.batch >= 1 && settings.batch <= settings.depth && settings.depth <= 1024);
  return 0;
}
