#include "offload/run/report.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/huge_pages.h"
#include "core/json_text.h"
#include "core/numa.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/plan/traffic.h"
#include "offload/run/report_figures.h"
#include "offload/run/runtime.h"
#include "optim/adamw.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

Json Tiers(Bytes hbm, Bytes pinned, Bytes nvme) {
  return {{"hbm", hbm.value()}, {"pinned", pinned.value()}, {"nvme", nvme.value()}};
}

std::string ComputeInWords(const CoreUse& cores) {
  if (cores.openmp_waits == nullptr) return cores.compute;
  return fmt::format("{}; {}", cores.compute, cores.openmp_waits->description());
}

std::string NodesInWords(const CoreUse& cores, ConstMemoryView arena) {
  const auto share = cores.node ? ShareOnNode(arena, *cores.node) : std::nullopt;
  if (!share) return cores.nodes;
  return fmt::format("{}; {:.0f}% of the pinned arena lie there", cores.nodes, 100 * *share);
}

// The pairs of types that units have, in the order of the first unit of each.
Json TypesObject(const ModelLayout& layout) {
  struct Pair {
    UnitTypes types;
    int64_t units = 0;
    Bytes params;
  };
  std::vector<Pair> pairs;
  for (const UnitLayout& unit : layout.units()) {
    auto pair = std::find_if(pairs.begin(), pairs.end(),
                             [&unit](const Pair& p) { return p.types == unit.types; });
    if (pair == pairs.end()) pair = pairs.insert(pairs.end(), {.types = unit.types});
    ++pair->units;
    pair->params += unit.param_bytes();
  }
  Json list = Json::array();
  for (const Pair& pair : pairs) {
    list.push_back({{"param_dtype", pair.types.param.name()},
                    {"grad_dtype", Name(pair.types.grad)},
                    {"units", pair.units},
                    {"param_bytes", pair.params.value()}});
  }
  return list;
}

// No limit is null.
Json BudgetsObject(const Budgets& budgets) {
  Json object = Tiers(budgets.hbm, budgets.pinned, budgets.nvme);
  for (Json& tier : object) {
    if (tier.get<int64_t>() >= kNoLimit.value()) tier = nullptr;
  }
  return object;
}

Json PlacementObject(const ModelLayout& layout, const Placement& p, const Budgets& budgets) {
  int64_t params[3] = {0, 0, 0};
  for (size_t u = 0; u < layout.units().size(); ++u) {
    const UnitLayout& unit = layout.units()[u];
    params[static_cast<int>(p.param_home[u])] +=
        (p.IsShared(u) ? unit.shard_bytes(layout.sharding().rank) : unit.param_bytes()).value();
  }
  const StepTraffic traffic = TrafficOf(layout, p);
  return {{"parameters", layout.parameter_count()},
          {"parameters_updated", layout.updated_count()},
          {"units", layout.units().size()},
          {"tensors", layout.tensors().size()},
          {"chunks", layout.chunks().size()},
          {"chunk_elements", layout.chunk_elements()},
          {"param_dtype", layout.default_types().param.name()},
          {"grad_dtype", Name(layout.default_types().grad)},
          {"types", TypesObject(layout)},
          {"state_format", layout.format()->name()},
          {"budgets_bytes", BudgetsObject(budgets)},
          {"planned_bytes", Tiers(p.hbm(), p.pinned(), p.nvme())},
          {"hbm",
           {{"resident_bytes", p.hbm_fixed.value()},
            {"cache_bytes", p.hbm_cache.value()},
            {"gradients_bytes", p.grads_hbm.value()},
            {"states_bytes", p.states_hbm.value()},
            {"exchange_bytes", p.exchange(Tier::kHbm).value()}}},
          {"pinned",
           {{"least_bytes", p.least_pinned.total().value()},
            {"gradients_bytes", p.grads_pinned.value()},
            {"params_bytes", p.params_pinned.value()},
            {"states_bytes", p.states_pinned.value()},
            {"state_buffers", p.state_buffers},
            {"state_buffer_bytes", p.state_buffer_bytes.value()},
            {"param_buffers", p.param_buffers},
            {"param_buffer_bytes", p.param_buffer_bytes.value()},
            {"grad_buffers", p.grad_buffers},
            {"grad_buffer_bytes", p.grad_buffer_bytes.value()},
            {"exchange_bytes", p.exchange(Tier::kPinned).value()}}},
          {"nvme",
           {{"states_bytes", p.states_nvme.value()},
            {"params_bytes", p.params_nvme.value()},
            {"gradients_bytes", p.grads_nvme.value()}}},
          {"params_home_bytes", Tiers(Bytes(params[0]), Bytes(params[1]), Bytes(params[2]))},
          {"step_traffic",
           {{"elements_updated", traffic.elements_updated},
            {"nvme_read_bytes", traffic.nvme_read.value()},
            {"nvme_write_bytes", traffic.nvme_written.value()},
            {"read_ahead_bytes", traffic.read_ahead.value()},
            {"spilled_bytes", traffic.spilled.value()},
            {"checksummed_bytes", traffic.checksummed.value()},
            {"to_hbm_bytes", traffic.to_hbm.value()},
            {"gradient_bytes", traffic.grads.value()}}}};
}

Json DrivesList(const BlockStore& store) {
  Json list = Json::array();
  for (size_t d = 0; d < store.drives().size(); ++d) {
    const Drive& drive = store.drives()[d];
    const BlockStore::DriveState& state = store.drive_states()[d];
    list.push_back({{"path", drive.path},
                    {"read_rate", drive.rate.read},
                    {"write_rate", drive.rate.write},
                    {"extents_bytes", state.extents.value()},
                    {"in_flight_max", state.in_flight_max},
                    {"reads", state.reads.value()},
                    {"read_bytes", state.read_bytes.value()},
                    {"writes", state.writes.value()},
                    {"write_bytes", state.write_bytes.value()},
                    {"failed", state.failed.value()},
                    {"queue_wait_ns", TimesObject(state.queue_wait_ns)},
                    {"read_ns", TimesObject(state.read_ns)},
                    {"write_ns", TimesObject(state.write_ns)}});
  }
  return list;
}

// What has gone to other ranks and come from them, since the start.
Json TrafficList(const RankLinks& links) {
  Json list = Json::array();
  const auto add = [&list](const char* group, const Communicator& link) {
    const CommCounts counts = link.counts();
    for (int k = 0; k < kCommKindCount; ++k) {
      const CommCount& count = counts[static_cast<size_t>(k)];
      if (count.operations == 0) continue;
      list.push_back({{"group", group},
                      {"kind", Name(static_cast<CommKind>(k))},
                      {"operations", count.operations},
                      {"sent_bytes", count.sent.value()},
                      {"received_bytes", count.received.value()}});
    }
  };
  for (const auto& [name, link] : links.all()) add(name, *link);
  return list;
}

Json RanksObject(const Sharding& sharding, const RuntimeOptions& options, const Ranks* ranks) {
  Json object = {{"rank", sharding.rank.value()},
                 {"ranks", sharding.ranks},
                 {"local_rank", options.share.local_rank},
                 {"local_ranks", options.share.local_ranks},
                 {"zero_stage", options.zero_stage},
                 {"communication", "one rank"},
                 {"rounds", 0},
                 {"traffic", Json::array()}};
  if (ranks == nullptr) return object;
  const Communicator& agreement = *ranks->links().agreement;
  const std::string of_host = agreement.description();
  const std::string of_hbm = ranks->links().gradients->description();
  object["communication"] = of_hbm == of_host ? of_host : of_hbm + "; values: " + of_host;
  object["rounds"] = agreement.counts()[static_cast<size_t>(CommKind::kAllGather)].operations;
  object["traffic"] = TrafficList(ranks->links());
  return object;
}

Json DeviceObject(const DeviceChoice& device) {
  return {{"kind", Name(device.kind)}, {"index", device.index}, {"reason", device.reason}};
}

}  // namespace

std::string PlacementJson(const ModelLayout& layout, const DeviceChoice& device,
                          const Placement& placement, const Budgets& budgets) {
  Json json = PlacementObject(layout, placement, budgets);
  json["device"] = DeviceObject(device);
  return JsonText(std::move(json), 2);
}

StepTraffic OffloadRuntime::Traffic() const { return TrafficOf(layout_, placement_); }

std::string OffloadRuntime::ReportJson() const {
  Json report = PlacementObject(layout_, placement_, options_.budgets);
  Bytes on_disk;
  Json paths = Json::array();
  for (const DirectFile& file : seams_.files) {
    on_disk += file.allocated();
    paths.push_back(file.description());
  }
  report["bytes_now"] = Tiers(hbm_->size(), memory_.pinned.size(), on_disk);
  report["engine"] = engine_->description();
  report["executor"] = seams_.executor->description();
  report["cores"] = {{"allowed", seams_.cores.allowed},
                     {"machine", seams_.cores.machine},
                     {"workers", seams_.executor->concurrency()},
                     {"compute", ComputeInWords(seams_.cores)},
                     {"update", seams_.cores.update},
                     {"nodes", NodesInWords(seams_.cores, memory_.pinned.memory())}};
  report["device"] = seams_.device->description();
  report["device_reason"] = seams_.device_reason;
  report["pinned_memory"] = pinning_;
  // In virtual time the memory is no arena's, and the report the same for a seed.
  const std::optional<Bytes> huge =
      seams_.threaded ? HugePageBytes(memory_.pinned.memory()) : std::nullopt;
  report["pinned_huge_page_bytes"] = huge ? Json(huge->value()) : Json(nullptr);
  report["memory"] = seams_.host_memory->description() +
                     (seams_.ram_unchecked.empty() ? "" : "; " + seams_.ram_unchecked);
  report["ranks"] = RanksObject(layout_.sharding(), options_, ranks_.get());
  report["update_rule"] = update_.rule().name();
  report["vector_target"] = VectorTarget();
  report["paths"] = std::move(paths);
  report["drives"] = DrivesList(*store_);
  report["counters"] = metrics_.Snapshot();
  report["histograms_ns"] = HistogramsObject(metrics_, *store_);
  const StepTimes::Figures figures = step_times_.figures();
  report["steps"] = StepsObject(figures);
  report["waited_for"] = WaitedObject(figures);
  report["trace_spans_dropped"] = trace_.dropped();
  const StepResult step = last_step();
  report["loss_scale"] = step.loss_scale;
  {
    const std::lock_guard lock(mutex_);
    report["loaded_from"] = loaded_from_;
  }
  report["failure"] = std::string(Message(failure()));
  return JsonText(std::move(report), 2);
}

}  // namespace sluice
