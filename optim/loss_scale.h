// optim/loss_scale.h
//
// The dynamic loss scale of fp16 training, with DeepSpeed's keys, defaults and transitions: doubled
// after `window` steps without overflow, halved on overflow once `hysteresis` overflows were seen.
// A value type; one thread at a time.

#ifndef SLUICE_OPTIM_LOSS_SCALE_H_
#define SLUICE_OPTIM_LOSS_SCALE_H_

#include <cstdint>

#include "absl/status/status.h"

namespace sluice {

struct LossScaleOptions {
  double static_scale = 0;       // fp16.loss_scale; 0 means dynamic
  int initial_scale_power = 16;  // fp16.initial_scale_power
  int64_t window = 1000;         // fp16.loss_scale_window
  int hysteresis = 2;            // fp16.hysteresis
  bool consecutive_hysteresis = false;
  double min_scale = 1;  // fp16.min_loss_scale
};

class LossScaler {
 public:
  // Scale 1, never changing: for bf16 and fp32.
  LossScaler() : LossScaler(LossScaleOptions{.static_scale = 1}) {}
  explicit LossScaler(const LossScaleOptions& options);

  double scale() const { return scale_; }

  // What a later run goes on with. Restore: nothing where either scale never changes.
  struct State {
    bool dynamic;
    double scale;
    int hysteresis_left;
    int64_t step;
    int64_t last_overflow_step;
  };
  State state() const {
    return {options_.static_scale <= 0, scale_, hysteresis_left_, step_, last_overflow_step_};
  }
  void Restore(const State& state);

  // After each step(). Errors: FailedPrecondition when the scale is already at its minimum and
  // still overflows (the state is unchanged): training can't go on at this precision.
  absl::Status Update(bool overflow);

 private:
  LossScaleOptions options_;
  double scale_;
  int hysteresis_left_;
  int64_t step_ = 0;
  int64_t last_overflow_step_ = -1;
};

}  // namespace sluice

#endif  // SLUICE_OPTIM_LOSS_SCALE_H_
