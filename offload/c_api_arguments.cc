// The C ABI's arguments: handles, checks of everything a caller can get wrong, and statuses.

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/c_api_internal.h"

namespace sluice::c_api {

namespace {

thread_local std::string last_error;

sluice_status CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return SLUICE_OK;
    case absl::StatusCode::kInvalidArgument:
      return SLUICE_INVALID_ARGUMENT;
    case absl::StatusCode::kFailedPrecondition:
      return SLUICE_FAILED_PRECONDITION;
    case absl::StatusCode::kResourceExhausted:
      return SLUICE_RESOURCE_EXHAUSTED;
    case absl::StatusCode::kNotFound:
      return SLUICE_NOT_FOUND;
    case absl::StatusCode::kDataLoss:
      return SLUICE_DATA_LOSS;
    case absl::StatusCode::kUnavailable:
      return SLUICE_UNAVAILABLE;
    case absl::StatusCode::kPermissionDenied:
      return SLUICE_PERMISSION_DENIED;
    default:
      return SLUICE_INTERNAL;
  }
}

}  // namespace

Handles<ModelSpec>& Models() {
  static auto* models = new Handles<ModelSpec>;
  return *models;
}
Handles<Runtime>& Runtimes() {
  static auto* runtimes = new Handles<Runtime>;
  // A fork must not catch the table locked.
  static const int registered =
      pthread_atfork([] { Runtimes().mutex()->lock(); }, [] { Runtimes().mutex()->unlock(); },
                     [] { Runtimes().mutex()->unlock(); });
  (void)registered;
  return *runtimes;
}

absl::Status NotNull(const void* pointer, const char* name) {
  return pointer != nullptr ? absl::OkStatus()
                            : absl::InvalidArgumentError(fmt::format("{} is NULL", name));
}

absl::Status CheckUnit(const Runtime& runtime, uint32_t unit) {
  if (unit < runtime.layout().units().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("unit {} does not exist; there are {}", unit, runtime.layout().units().size()));
}

absl::Status CheckTensor(const Runtime& runtime, uint32_t tensor) {
  if (tensor < runtime.layout().tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("tensor {} does not exist; there are {}", tensor,
                                                runtime.layout().tensors().size()));
}

absl::Status CheckElements(const Runtime& runtime, uint32_t tensor, int64_t elements) {
  const TensorLayout& t = runtime.layout().tensors()[tensor];
  if (t.elements == elements) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor '{}' has {} elements, not {}", t.name, t.elements, elements));
}

absl::StatusOr<FloatType> ToFloatType(int32_t dtype, const char* name) {
  if (dtype >= SLUICE_F32 && dtype <= SLUICE_F16) return static_cast<FloatType>(dtype);
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; it must be 0 (fp32), 1 (bf16) or 2 (fp16)", name, dtype));
}

absl::Status CheckRange(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; it must be between {} and {}", name, value, low, high));
}

absl::Status WriteText(const std::string& text, char* out, size_t capacity, size_t* needed) {
  if (needed != nullptr) *needed = text.size() + 1;
  if (capacity == 0) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(NotNull(out, "json"));
  const size_t n = std::min(capacity - 1, text.size());
  std::memcpy(out, text.data(), n);
  out[n] = '\0';
  return absl::OkStatus();
}

absl::StatusOr<StepRequest> ToStepRequest(const sluice_step_args* args, const Runtime& runtime) {
  SLUICE_RETURN_IF_ERROR(CheckStruct(args, "args"));
  SLUICE_RETURN_IF_ERROR(NotNull(args->groups, "args.groups"));
  StepRequest request{.groups = {}, .clip_norm = args->clip_norm};
  if (!(args->clip_norm >= 0) || std::isinf(args->clip_norm)) {
    return absl::InvalidArgumentError(
        fmt::format("clip_norm is {}; it must be 0 (off) or positive", args->clip_norm));
  }
  for (uint32_t g = 0; g < args->group_count; ++g) {
    const sluice_group& group = args->groups[g];
    SLUICE_RETURN_IF_ERROR(CheckStruct(&group, "group"));
    const bool sound = std::isfinite(group.lr) && group.lr >= 0 && group.beta1 >= 0 &&
                       group.beta1 < 1 && group.beta2 >= 0 && group.beta2 < 1 && group.eps >= 0 &&
                       std::isfinite(group.weight_decay);
    if (!sound) {
      return absl::InvalidArgumentError(
          fmt::format("group {}: lr {}, betas ({}, {}), eps {}, weight_decay {}: lr and eps must "
                      "not be negative, betas "
                      "in [0, 1), all finite",
                      g, group.lr, group.beta1, group.beta2, group.eps, group.weight_decay));
    }
    request.groups.push_back(
        {.lr = group.lr,
         .beta1 = group.beta1,
         .beta2 = group.beta2,
         .eps = group.eps,
         .weight_decay = group.weight_decay,
         .decay_mode = group.l2_decay != 0 ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled,
         .bias_correction = group.bias_correction != 0});
  }
  for (const TensorLayout& tensor : runtime.layout().tensors()) {
    if (tensor.group < args->group_count) continue;
    return absl::InvalidArgumentError(
        fmt::format("tensor '{}' is in group {}, but the step has {} groups", tensor.name,
                    tensor.group, args->group_count));
  }
  return request;
}

sluice_status Return(const absl::Status& status) {
  if (!status.ok()) last_error = std::string(Message(status));
  return CodeOf(status);
}

const std::string& LastError() { return last_error; }

sluice_runtime AddRuntime(std::unique_ptr<Runtime> runtime) {
  return Runtimes().Add(std::shared_ptr<Runtime>(std::move(runtime)));
}

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* options) {
  SLUICE_RETURN_IF_ERROR(CheckStruct(options, "options"));
  RuntimeConfig config;
  SLUICE_ASSIGN_OR_RETURN(config.placement.param_type,
                          ToFloatType(options->param_dtype, "param_dtype"));
  SLUICE_ASSIGN_OR_RETURN(config.placement.grad_type,
                          ToFloatType(options->grad_dtype, "grad_dtype"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(options->lowest_param_tier, SLUICE_HBM, SLUICE_NVME, "lowest_param_tier"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(options->lowest_state_tier, SLUICE_HBM, SLUICE_NVME, "lowest_state_tier"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(options->io_engine, SLUICE_IO_AUTO, SLUICE_IO_LIBAIO, "io_engine"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(options->executor, SLUICE_EXECUTOR_TBB, SLUICE_EXECUTOR_THREADS, "executor"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->workers, 0, 1024, "workers"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->io_depth, 0, 1024, "io_depth"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->io_batch, 0, 1024, "io_batch"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->nvme_path_count, 0, 256, "nvme_path_count"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(options->chunk_elements, 0, int64_t{1} << 30, "chunk_elements"));
  config.placement.lowest_param_tier = static_cast<Tier>(options->lowest_param_tier);
  config.placement.lowest_state_tier = static_cast<Tier>(options->lowest_state_tier);
  if (options->resident_elements_max >= 0)
    config.placement.resident_elements_max = options->resident_elements_max;
  config.budgets = {Bytes(options->hbm_bytes), Bytes(options->pinned_bytes),
                    Bytes(options->nvme_bytes)};
  for (uint32_t i = 0; i < options->nvme_path_count; ++i) {
    SLUICE_RETURN_IF_ERROR(NotNull(options->nvme_paths, "nvme_paths"));
    SLUICE_RETURN_IF_ERROR(NotNull(options->nvme_paths[i], "nvme_paths[i]"));
    config.nvme_paths.emplace_back(options->nvme_paths[i]);
  }
  constexpr IoEngineKind kEngines[] = {IoEngineKind::kAuto, IoEngineKind::kIoUring,
                                       IoEngineKind::kThreads, IoEngineKind::kLibaio};
  config.engine = kEngines[options->io_engine];
  if (options->io_depth > 0) config.io.in_flight_max = options->io_depth;
  if (options->io_batch > 0) config.io.submit_batch_max = options->io_batch;
  config.executor =
      options->executor == SLUICE_EXECUTOR_THREADS ? ExecutorKind::kThreads : ExecutorKind::kTbb;
  config.workers = options->workers;
  config.chunk_elements = options->chunk_elements;
  config.loss_scale = {.static_scale = options->static_loss_scale,
                       .initial_scale_power = options->initial_scale_power,
                       .window = options->loss_scale_window,
                       .hysteresis = options->hysteresis,
                       .consecutive_hysteresis = options->consecutive_hysteresis != 0,
                       .min_scale = options->min_loss_scale};
  config.link_bytes_per_second = options->link_bytes_per_second;
  config.overlap = options->overlap != 0;
  config.trace_spans_max = options->trace_spans_max;
  return config;
}

}  // namespace sluice::c_api
