#include "tools/plan_gpus.h"

#include <algorithm>
#include <array>
#include <optional>

#include "core/status.h"
#include "tools/gpus_page.h"
#include "tools/gpus_report.h"
#include "tools/json_file.h"

namespace sluice::tools {

namespace {

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(value->value()) : Json(nullptr);
}

Json WayJson(const ZeroNeed& need, const ZeroVerdict& verdict, int64_t drives) {
  constexpr std::array kFits = {"yes", "tight", "unknown", "no"};
  constexpr std::array kTiers = {"hbm", "ram", "nvme"};
  const bool good = verdict.fit == ZeroFit::kFits || verdict.fit == ZeroFit::kTight;
  const Bytes nvme = need.nvme.sum();
  return {{"stage", need.way.stage},
          {"offload_optimizer", OffloadDevice(need.way.states)},
          {"offload_param", OffloadDevice(need.way.params)},
          {"gpu_bytes", need.gpu().value()},
          {"gpu_kept_bytes", need.gpu_kept.sum().value()},
          {"gpu_moving_bytes", need.gpu_moving.sum().value()},
          {"gpu_exchange_bytes", need.gpu_exchange().value()},
          {"ram_bytes", need.ram.sum().value()},
          {"ram_least_bytes", need.ram_least.sum().value()},
          {"nvme_bytes", nvme.value()},
          {"nvme_most_bytes", need.nvme_most.sum().value()},
          {"drive_bytes", (nvme.value() + drives - 1) / drives},
          {"buffers_bytes", need.buffers.value()},
          {"exchange_bytes", need.exchange.sum().value()},
          {"formulas",
           {{"gpu_kept", need.gpu_kept.formula()},
            {"gpu_moving", need.gpu_moving.formula()},
            {"exchange", need.exchange.formula()},
            {"ram", need.ram.formula()},
            {"nvme", need.nvme.formula()}}},
          {"fits", kFits[static_cast<size_t>(verdict.fit)]},
          {"short_of", good ? Json(nullptr) : Json(kTiers[static_cast<size_t>(verdict.tier)])},
          {"gradients_on_nvme", verdict.spills}};
}

Json ReportJson(const GpusReport& report) {
  const ZeroModel& model = report.model;
  const ZeroMachine& limits = report.machine.limits;
  const auto per_parameter = [&report](size_t term) {
    return static_cast<double>(report.needs.front().gpu_kept.terms[term].cell.value()) /
           kCellElements;
  };
  Json json;
  if (!report.described.empty()) json["model"] = report.described;
  json["parameters"] = model.parameters();
  json["two_units_parameters"] = model.two_units();
  json["largest_unit_parameters"] = model.largest_unit();
  json["gpus"] = model.gpus;
  json["gpus_per_host"] = model.gpus_per_host;
  json["hosts"] = report.hosts();
  json["drives_per_host"] = report.drives;
  json["bytes_per_parameter"] = {
      {"param", per_parameter(0)}, {"grad", per_parameter(1)}, {"states", per_parameter(2)}};
  json["machine"] = {{"hbm_bytes", OrNull(limits.hbm)},
                     {"ram_bytes", OrNull(limits.ram)},
                     {"nvme_bytes", OrNull(limits.nvme)},
                     {"headroom_percent", limits.headroom_percent}};
  json["ways"] = Json::array();
  for (size_t i = 0; i < report.needs.size(); ++i)
    json["ways"].push_back(WayJson(report.needs[i], report.verdicts[i], report.drives));
  json["recommended"] = nullptr;
  if (const ZeroNeed* take = report.recommended()) {
    json["recommended"] = {{"stage", take->way.stage},
                           {"offload_optimizer", OffloadDevice(take->way.states)},
                           {"offload_param", OffloadDevice(take->way.params)},
                           {"gpu_free_bytes", report.hbm_free().value()}};
  }
  json["reason"] = WhyRecommended(report);
  return json;
}

}  // namespace

ExitCode PlanGpus(const PlanOptions& options, const HfModel& model, const RuntimeConfig& config) {
  const absl::StatusOr<GpusReport> report = MakeGpusReport(options, model, config);
  if (!report.ok()) {
    Fail(Message(report.status()));
    return kUsage;
  }
  const ExitCode printed =
      Print(options.json ? Text(ReportJson(*report)) + "\n" : GpusPage(*report));
  const bool nothing = std::ranges::all_of(report->verdicts, [](const ZeroVerdict& verdict) {
    return verdict.fit == ZeroFit::kTooLarge;
  });
  return printed == kDone && nothing ? Fail(WhyRecommended(*report)) : printed;
}

}  // namespace sluice::tools
