// What a replay needs of a run, as JSON: sim/recording.h reads it.

#include <cstdint>
#include <string>
#include <utility>

#include "core/json_text.h"
#include "nlohmann/json.hpp"
#include "offload/run/runtime.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

Json UnitsList(const ModelLayout& layout) {
  Json list = Json::array();
  for (const UnitLayout& unit : layout.units()) {
    list.push_back({{"param_dtype", unit.types.param.name()},
                    {"grad_dtype", Name(unit.types.grad)},
                    {"stays_in_hbm", unit.stays_in_hbm}});
  }
  return list;
}

// By place, in lists of plain numbers: a model may have many.
Json TensorsObject(const ModelLayout& layout) {
  Json units = Json::array(), elements = Json::array(), keeps = Json::array();
  for (const TensorLayout& tensor : layout.tensors()) {
    units.push_back(tensor.unit.value());
    elements.push_back(tensor.elements);
    keeps.push_back(static_cast<int>(tensor.keep));
  }
  return {
      {"unit", std::move(units)}, {"elements", std::move(elements)}, {"keep", std::move(keeps)}};
}

Json CallsObject(const std::vector<RecordedCall>& calls) {
  std::string kinds;
  Json indices = Json::array(), owns = Json::array();
  for (const RecordedCall& call : calls) {
    kinds += static_cast<char>(call.kind);
    indices.push_back(call.index);
    owns.push_back(call.own.count());
  }
  return {{"kinds", std::move(kinds)}, {"index", std::move(indices)}, {"own_ns", std::move(owns)}};
}

Json OptionsObject(const RuntimeOptions& options, const Seams& seams) {
  const PlacementOptions& p = options.placement;
  return {{"lowest_param_tier", static_cast<int>(p.lowest_param_tier)},
          {"lowest_state_tier", static_cast<int>(p.lowest_state_tier)},
          {"highest_state_tier", static_cast<int>(p.highest_state_tier)},
          {"resident_elements_max", p.resident_elements_max},
          {"state_buffers", p.state_buffers},
          {"param_buffers", p.param_buffers},
          {"grad_buffers", p.grad_buffers},
          {"io_alignment", p.io_alignment.value()},
          {"hbm_in_place", p.hbm_in_place},
          {"copy_bytes", p.copy_bytes.value()},
          {"task_elements", p.task_elements},
          {"overlap", options.overlap},
          {"io_depth", options.io.in_flight_max},
          {"io_batch", options.io.submit_batch_max},
          {"callers_help", seams.cores.callers_help}};
}

}  // namespace

std::string OffloadRuntime::RecordingJson() const {
  const Json json = {{"version", 1},
                     {"report", Json::parse(ReportJson())},
                     {"options", OptionsObject(options_, seams_)},
                     {"units", UnitsList(layout_)},
                     {"tensors", TensorsObject(layout_)},
                     {"calls", CallsObject(record_.last_step())}};
  return JsonText(json, -1);
}

}  // namespace sluice
