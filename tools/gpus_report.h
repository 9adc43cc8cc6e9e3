// tools/gpus_report.h
//
// What `sluice plan --gpus` has to say: needs of all ways, verdicts, and one to take with the
// reason. Made here, printed by gpus_page.h and plan_gpus.h.

#ifndef SLUICE_TOOLS_GPUS_REPORT_H_
#define SLUICE_TOOLS_GPUS_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "offload/plan/zero_need.h"
#include "offload/run/factory.h"
#include "tools/hf_model.h"
#include "tools/plan_options.h"

namespace sluice::tools {

// What there is, and in words where each number is from: "given".
struct GpusMachine {
  ZeroMachine limits;
  std::string hbm = "not given, and no GPU was found here: give --hbm";
  std::string ram = "not given: give --ram";
  std::string nvme = "not given: give --nvme";
};

struct GpusReport {
  ZeroModel model;
  GpusMachine machine;
  std::vector<ZeroNeed> needs;        // of all ways
  std::vector<ZeroVerdict> verdicts;  // likewise
  std::optional<size_t> best;         // none: nothing is known to fit
  int64_t drives = 1;                 // of a host
  std::string described;              // where the model is from; empty if from numbers

  const ZeroNeed* recommended() const { return best ? &needs[*best] : nullptr; }
  // Precondition: something is recommended.
  Bytes hbm_free() const { return *machine.limits.hbm - needs[*best].gpu(); }
  int64_t hosts() const { return (model.gpus + model.gpus_per_host - 1) / model.gpus_per_host; }
};

// This machine is looked at if it has a GPU and something was not given. config: what `options`
// say. Errors: InvalidArgument, for numbers that don't go together.
absl::StatusOr<GpusReport> MakeGpusReport(const PlanOptions& options, const HfModel& model,
                                          const RuntimeConfig& config);

// Why this way is recommended, or why none is.
std::string WhyRecommended(const GpusReport& report);

// "none", "cpu" or "nvme": a tier as a ds_config.json calls it.
const char* OffloadDevice(Tier tier);

// "stage 3, optimizer on cpu, parameters on nvme".
std::string WayText(const ZeroWay& way);

// "38.5 GB", in powers of 1000, as these figures are quoted; "-" for nothing.
std::string Decimal(Bytes bytes);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_GPUS_REPORT_H_
