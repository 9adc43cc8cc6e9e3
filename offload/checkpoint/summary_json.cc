#include "offload/checkpoint/summary_json.h"

#include <string>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {

nlohmann::ordered_json SummaryObject(const CheckpointSummary& summary) {
  using Json = nlohmann::ordered_json;
  return {{"tag", summary.tag},
          {"id", fmt::format("{:016x}", summary.id)},
          {"ranks", summary.ranks},
          {"steps", summary.steps},
          {"bytes", summary.bytes},
          {"saved_at", summary.saved_at},
          {"problem", summary.status.ok() ? Json() : Json(std::string(Message(summary.status)))}};
}

}  // namespace sluice
