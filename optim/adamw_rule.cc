#include "optim/adamw_rule.h"

#include "optim/adamw.h"
#include "optim/on_stream.h"

namespace sluice {

namespace {

constexpr size_t kExpAvg = 1, kExpAvgSq = 2;
constexpr StateField kFields[] = {
    kMasterField, {Field::kExpAvg, "exp_avg"}, {Field::kExpAvgSq, "exp_avg_sq"}};

void UpdateFp32(void* stream, const StepScalars& scalars, const StateFormat& format,
                const ChunkStates& chunk, const UpdateRun& run) {
  const auto values = [&](size_t field) {
    return std::span(format.InPlace(chunk, field) + run.at, run.elements);
  };
  AdamWUpdateOn(stream, scalars.As<AdamWCoefficients>(),
                {.master = values(kMasterIndex),
                 .exp_avg = values(kExpAvg),
                 .exp_avg_sq = values(kExpAvgSq),
                 .grad = run.grad,
                 .grad_type = run.grad_type,
                 .param_out = run.param_out,
                 .param_type = run.param_type,
                 .sums = {.before = run.before,
                          .after = run.after,
                          .stripe = {run.stripe, run.stripe + run.column_stripes,
                                     run.stripe + 2 * run.column_stripes}}});
}

class AdamW final : public UpdateRule {
 public:
  const char* name() const override { return "AdamW"; }
  std::span<const StateField> fields() const override { return kFields; }
  StepScalars Scalars(const Hyperparameters& hyper, int64_t step, float grad_scale) const override {
    return StepScalars::Of(MakeCoefficients(hyper.As<AdamWHyper>(), step, grad_scale));
  }
  void UpdateTile(const StepScalars& scalars, float* const* fields, const float* grad,
                  size_t n) const override {
    AdamWUpdate(scalars.As<AdamWCoefficients>(), {.master = {fields[kMasterIndex], n},
                                                  .exp_avg = {fields[kExpAvg], n},
                                                  .exp_avg_sq = {fields[kExpAvgSq], n},
                                                  .grad = grad});
  }
  UpdateKernel KernelFor(const StateFormat& format) const override {
    if (!format.all_in_place()) return {};
    return {.run = UpdateFp32,
            .on_gpus = true,
            .adds_sums = format.columns(std::nullopt) == std::size(kFields)};
  }
};

}  // namespace

std::shared_ptr<const UpdateRule> MakeAdamW() { return std::make_shared<AdamW>(); }

}  // namespace sluice
