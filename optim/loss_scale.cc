#include "optim/loss_scale.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sluice {

namespace {
constexpr double kScaleMax = 0x1p126;  // fp32 has it, and its inverse
}

LossScaler::LossScaler(const LossScaleOptions& options)
    : options_(options),
      scale_(options.static_scale > 0 ? options.static_scale
                                      : std::ldexp(1.0, options.initial_scale_power)),
      hysteresis_left_(options.hysteresis) {}

void LossScaler::Restore(const State& state) {
  if (options_.static_scale > 0 || !state.dynamic) return;
  scale_ = std::clamp(state.scale, std::min(options_.min_scale, kScaleMax), kScaleMax);
  hysteresis_left_ = std::clamp(state.hysteresis_left, 1, std::max(options_.hysteresis, 1));
  step_ = state.step;
  last_overflow_step_ = state.last_overflow_step;
}

absl::Status LossScaler::Update(bool overflow) {
  if (options_.static_scale > 0) return absl::OkStatus();
  if (overflow) {
    if (options_.hysteresis == 1 || hysteresis_left_ == 1) {
      if (scale_ <= options_.min_scale) {
        return absl::FailedPreconditionError(
            fmt::format("the loss scale is at its minimum of {} and gradients still overflow: "
                        "lower the learning rate, or train in bf16",
                        options_.min_scale));
      }
      scale_ = std::max(scale_ / 2, options_.min_scale);
    } else {
      --hysteresis_left_;
    }
    last_overflow_step_ = step_;
  } else {
    if (options_.consecutive_hysteresis) hysteresis_left_ = options_.hysteresis;
    const int64_t stable = step_ - last_overflow_step_ - 1;
    if (stable > 0 && stable % options_.window == 0) {
      if (!options_.consecutive_hysteresis) hysteresis_left_ = options_.hysteresis;
      scale_ = std::min(scale_ * 2, kScaleMax);
    }
  }
  ++step_;
  return absl::OkStatus();
}

}  // namespace sluice
