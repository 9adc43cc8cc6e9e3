#include "offload/run/run_state.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/json_text.h"
#include "nlohmann/json.hpp"

namespace sluice {

std::string RunStateText(const LossScaler::State& state) {
  return JsonText({{"dynamic", state.dynamic},
                   {"loss_scale", state.scale},
                   {"hysteresis_left", state.hysteresis_left},
                   {"steps_scaled", state.step},
                   {"last_overflow", state.last_overflow_step}},
                  2);
}

absl::StatusOr<LossScaler::State> ParseRunState(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto whole = [&json](const char* key) {
    return json.contains(key) && json[key].is_number_integer();
  };
  if (!json.is_object() || !json.contains("dynamic") || !json["dynamic"].is_boolean() ||
      !json.contains("loss_scale") || !json["loss_scale"].is_number() ||
      !whole("hysteresis_left") || !whole("steps_scaled") || !whole("last_overflow"))
    return absl::DataLossError("the state of the loss scale is not one that Sluice saved");
  LossScaler::State state{.dynamic = json["dynamic"].get<bool>(),
                          .scale = json["loss_scale"].get<double>(),
                          .hysteresis_left = static_cast<int>(std::clamp<int64_t>(
                              json["hysteresis_left"].get<int64_t>(), INT32_MIN, INT32_MAX)),
                          .step = json["steps_scaled"].get<int64_t>(),
                          .last_overflow_step = json["last_overflow"].get<int64_t>()};
  if (!std::isfinite(state.scale) || state.scale <= 0 || state.step < 0 ||
      state.last_overflow_step < -1 || state.last_overflow_step > state.step)
    return absl::DataLossError("the state of the loss scale has numbers that it never has");
  return state;
}

}  // namespace sluice
