#include "tools/plan_tuned.h"

#include <algorithm>

#include "core/cgroup.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/tuned_use.h"
#include "tools/bench_report.h"

namespace sluice::tools {

absl::Status PlanTuned::Apply(const PlanOptions& options, RuntimeConfig* config) {
  if (options.tuned.empty()) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const Tuned tuned, ReadTuned(options.tuned));
  if (options.nvme_paths.empty()) {
    config->nvme_paths.clear();
    for (const Tuned::Path& path : tuned.paths) config->nvme_paths.push_back(path.drive.path);
  }
  std::vector<DriveIdentity> drives;
  for (const std::string& path : config->nvme_paths)
    drives.push_back(IdentityOf(FilesBelow(""), path));
  settings_ = ChooseTuned(tuned, options.tuned, ThisMachine(), drives).settings;
  return ApplyTuned(options.tuned, config);
}

// What is read and written in equal parts goes at the rate of both, mixed; the rest by itself.
double PlanTuned::SecondsOf(const StepTraffic& traffic) const {
  const auto read = static_cast<double>(traffic.nvme_read.value());
  const auto written = static_cast<double>(traffic.nvme_written.value());
  const double both = std::min(read, written);
  return 2 * both / settings_->mixed_rate + (read - both) / settings_->read_rate +
         (written - both) / settings_->write_rate;
}

std::string PlanTuned::TimeText(const StepTraffic& traffic) const {
  return fmt::format("{:>10}  at least, at {} GB/s mixed, as tuned",
                     FigureText(SecondsOf(traffic)) + " s",
                     FigureText(settings_->mixed_rate / 1e9));
}

Json PlanTuned::AsJson(const StepTraffic& traffic, const RuntimeConfig& config) const {
  return {{"file", config.io_settings.tuned_file},
          {"nvme_seconds", SecondsOf(traffic)},
          {"warnings", config.io_settings.warnings}};
}

}  // namespace sluice::tools
