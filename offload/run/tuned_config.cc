#include "offload/run/tuned_config.h"

#include <algorithm>
#include <utility>

#include "core/cgroup.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/tuned_use.h"
#include "offload/run/factory.h"

namespace sluice {

const char* Name(SettingFrom from) {
  switch (from) {
    case SettingFrom::kGiven:
      return "given";
    case SettingFrom::kTuned:
      return "tuned";
    case SettingFrom::kDefault:
      break;
  }
  return "default";
}

absl::Status ApplyTuned(const std::string& file, RuntimeConfig* config) {
  SLUICE_ASSIGN_OR_RETURN(const Tuned tuned, ReadTuned(file));
  IoSettings& io = config->io_settings;
  io.tuned_file = file;
  if (config->nvme_paths.empty()) {
    io.warnings.push_back(fmt::format("{} is not used: nothing goes to NVMe", file));
    return absl::OkStatus();
  }
  std::vector<DriveIdentity> drives;
  for (const std::string& path : config->nvme_paths)
    drives.push_back(IdentityOf(FilesBelow(""), path));
  TunedChoice choice = ChooseTuned(tuned, file, ThisMachine(), drives);
  io.warnings = std::move(choice.warnings);
  const auto take = [](SettingFrom* from) {
    const bool taken = *from == SettingFrom::kDefault;
    if (taken) *from = SettingFrom::kTuned;
    return taken;
  };
  if (take(&io.chunk_elements)) config->request = choice.settings.request;
  if (take(&io.depth)) config->io.in_flight_max = choice.settings.depth;
  if (take(&io.batch)) config->io.submit_batch_max = choice.settings.batch;
  if (take(&io.engine)) config->engine = choice.settings.engine;
  if (!choice.rates.empty() && take(&io.drive_rates)) config->nvme_rates = std::move(choice.rates);
  return absl::OkStatus();
}

void ShareTunedDepth(uint32_t local_ranks, RuntimeConfig* config) {
  if (config->io_settings.depth != SettingFrom::kTuned || local_ranks < 2) return;
  constexpr uint32_t kLeast = 2;  // one being served, one waiting
  config->io.in_flight_max =
      std::max(kLeast, (config->io.in_flight_max + local_ranks - 1) / local_ranks);
}

}  // namespace sluice
