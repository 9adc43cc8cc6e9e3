// The C ABI over the Runtime: handles, checks of everything a caller can get wrong, and statuses.

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/c_api_internal.h"
#include "offload/factory.h"
#include "offload/report.h"
#include "offload/sluice.h"

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

// Handles of one kind. An entry lives until the last call that uses it has returned.
template <typename T>
class Handles {
 public:
  uint64_t Add(std::shared_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    const uint64_t handle = next_++;
    objects_[handle] = {std::move(object), getpid()};
    return handle;
  }
  absl::StatusOr<std::shared_ptr<T>> Get(uint64_t handle, const char* kind) {
    const std::lock_guard lock(mutex_);
    const auto it = objects_.find(handle);
    if (it == objects_.end()) {
      return absl::InvalidArgumentError(fmt::format("{:#x} is not a {} handle, or it was destroyed", handle, kind));
    }
    if (it->second.pid != getpid()) {
      return absl::FailedPreconditionError(fmt::format(
          "this {} belongs to process {}; a forked child can't use it: create one of its own", kind, it->second.pid));
    }
    return it->second.object;
  }
  absl::StatusOr<std::shared_ptr<T>> Remove(uint64_t handle, const char* kind) {
    SLUICE_ASSIGN_OR_RETURN(std::shared_ptr<T> object, Get(handle, kind));
    const std::lock_guard lock(mutex_);
    objects_.erase(handle);
    return object;
  }
  std::mutex* mutex() { return &mutex_; }

 private:
  struct Entry {
    std::shared_ptr<T> object;
    pid_t pid = 0;
  };
  std::mutex mutex_;
  uint64_t next_ = 0x51;  // handles of either kind differ from small numbers, and are never reused
  std::map<uint64_t, Entry> objects_;
};

// Never destroyed: a child of fork, or a thread that outlives main, must find them.
Handles<ModelSpec>& Models() {
  static auto* models = new Handles<ModelSpec>;
  return *models;
}
Handles<Runtime>& Runtimes() {
  static auto* runtimes = new Handles<Runtime>;
  // A fork must not catch the table locked.
  static const int registered = pthread_atfork([] { Runtimes().mutex()->lock(); }, [] { Runtimes().mutex()->unlock(); },
                                               [] { Runtimes().mutex()->unlock(); });
  (void)registered;
  return *runtimes;
}

absl::Status NotNull(const void* pointer, const char* name) {
  return pointer != nullptr ? absl::OkStatus() : absl::InvalidArgumentError(fmt::format("{} is NULL", name));
}

absl::Status CheckUnit(const Runtime& runtime, uint32_t unit) {
  if (unit < runtime.layout().units().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("unit {} does not exist; there are {}", unit, runtime.layout().units().size()));
}

absl::Status CheckTensor(const Runtime& runtime, uint32_t tensor) {
  if (tensor < runtime.layout().tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor {} does not exist; there are {}", tensor, runtime.layout().tensors().size()));
}

absl::Status CheckElements(const Runtime& runtime, uint32_t tensor, int64_t elements) {
  const TensorLayout& t = runtime.layout().tensors()[tensor];
  if (t.elements == elements) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor '{}' has {} elements, not {}", t.name, t.elements, elements));
}

absl::StatusOr<FloatType> ToFloatType(int32_t dtype, const char* name) {
  if (dtype >= SLUICE_F32 && dtype <= SLUICE_F16) return static_cast<FloatType>(dtype);
  return absl::InvalidArgumentError(fmt::format("{} is {}; it must be 0 (fp32), 1 (bf16) or 2 (fp16)", name, dtype));
}

absl::Status CheckRange(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} is {}; it must be between {} and {}", name, value, low, high));
}

// Any struct of a caller: at least as long as this version's, so nothing is read that isn't there.
template <typename T>
absl::Status CheckStruct(const T* value, const char* name) {
  SLUICE_RETURN_IF_ERROR(NotNull(value, name));
  if (value->struct_size >= sizeof(T) && value->struct_size < 4096) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}.struct_size is {}; set it to sizeof (here {})", name,
                                                value->struct_size, sizeof(T)));
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
    return absl::InvalidArgumentError(fmt::format("clip_norm is {}; it must be 0 (off) or positive", args->clip_norm));
  }
  for (uint32_t g = 0; g < args->group_count; ++g) {
    const sluice_group& group = args->groups[g];
    SLUICE_RETURN_IF_ERROR(CheckStruct(&group, "group"));
    const bool sound = std::isfinite(group.lr) && group.lr >= 0 && group.beta1 >= 0 && group.beta1 < 1 &&
                       group.beta2 >= 0 && group.beta2 < 1 && group.eps >= 0 && std::isfinite(group.weight_decay);
    if (!sound) {
      return absl::InvalidArgumentError(
          fmt::format("group {}: lr {}, betas ({}, {}), eps {}, weight_decay {}: lr and eps must not be negative, betas "
                      "in [0, 1), all finite",
                      g, group.lr, group.beta1, group.beta2, group.eps, group.weight_decay));
    }
    request.groups.push_back({.lr = group.lr,
                              .beta1 = group.beta1,
                              .beta2 = group.beta2,
                              .eps = group.eps,
                              .weight_decay = group.weight_decay,
                              .decay_mode = group.l2_decay != 0 ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled,
                              .bias_correction = group.bias_correction != 0});
  }
  for (const TensorLayout& tensor : runtime.layout().tensors()) {
    if (tensor.group < args->group_count) continue;
    return absl::InvalidArgumentError(fmt::format("tensor '{}' is in group {}, but the step has {} groups",
                                                  tensor.name, tensor.group, args->group_count));
  }
  return request;
}

absl::Status Access(sluice_runtime handle, uint32_t tensor, int32_t field, void* data, int32_t dtype, int64_t elements,
                    bool write, sluice_ticket* ticket) {
  SLUICE_ASSIGN_OR_RETURN(const auto runtime, Runtimes().Get(handle, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(data, "data"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  SLUICE_RETURN_IF_ERROR(CheckTensor(*runtime, tensor));
  SLUICE_RETURN_IF_ERROR(CheckElements(*runtime, tensor, elements));
  SLUICE_RETURN_IF_ERROR(CheckRange(field, SLUICE_PARAM, SLUICE_GRAD, "field"));
  if (write && (field == SLUICE_PARAM || field == SLUICE_GRAD)) {
    return absl::InvalidArgumentError("parameters and gradients can't be written: write SLUICE_MASTER");
  }
  SLUICE_ASSIGN_OR_RETURN(const FloatType type, ToFloatType(dtype, "dtype"));
  *ticket = runtime->Access({.write = write,
                             .tensor = TensorIndex(tensor),
                             .field = static_cast<Field>(field),
                             .data = static_cast<std::byte*>(data),
                             .type = type,
                             .done = nullptr});
  return absl::OkStatus();
}

}  // namespace

sluice_status Return(const absl::Status& status) {
  if (!status.ok()) last_error = std::string(Message(status));
  return CodeOf(status);
}

absl::StatusOr<std::shared_ptr<ModelSpec>> GetModel(sluice_model model) { return Models().Get(model, "model"); }

sluice_runtime AddRuntime(std::unique_ptr<Runtime> runtime) {
  return Runtimes().Add(std::shared_ptr<Runtime>(std::move(runtime)));
}

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* options) {
  SLUICE_RETURN_IF_ERROR(CheckStruct(options, "options"));
  RuntimeConfig config;
  SLUICE_ASSIGN_OR_RETURN(config.placement.param_type, ToFloatType(options->param_dtype, "param_dtype"));
  SLUICE_ASSIGN_OR_RETURN(config.placement.grad_type, ToFloatType(options->grad_dtype, "grad_dtype"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->lowest_param_tier, SLUICE_HBM, SLUICE_NVME, "lowest_param_tier"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->lowest_state_tier, SLUICE_HBM, SLUICE_NVME, "lowest_state_tier"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->io_engine, SLUICE_IO_AUTO, SLUICE_IO_THREADS, "io_engine"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->executor, SLUICE_EXECUTOR_TBB, SLUICE_EXECUTOR_THREADS, "executor"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->workers, 0, 1024, "workers"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->io_depth, 0, 1024, "io_depth"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->io_batch, 0, 1024, "io_batch"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->nvme_path_count, 0, 256, "nvme_path_count"));
  SLUICE_RETURN_IF_ERROR(CheckRange(options->chunk_elements, 0, int64_t{1} << 30, "chunk_elements"));
  config.placement.lowest_param_tier = static_cast<Tier>(options->lowest_param_tier);
  config.placement.lowest_state_tier = static_cast<Tier>(options->lowest_state_tier);
  if (options->resident_elements_max >= 0) config.placement.resident_elements_max = options->resident_elements_max;
  config.budgets = {Bytes(options->hbm_bytes), Bytes(options->pinned_bytes), Bytes(options->nvme_bytes)};
  for (uint32_t i = 0; i < options->nvme_path_count; ++i) {
    SLUICE_RETURN_IF_ERROR(NotNull(options->nvme_paths, "nvme_paths"));
    SLUICE_RETURN_IF_ERROR(NotNull(options->nvme_paths[i], "nvme_paths[i]"));
    config.nvme_paths.emplace_back(options->nvme_paths[i]);
  }
  constexpr IoEngineKind kEngines[] = {IoEngineKind::kAuto, IoEngineKind::kIoUring, IoEngineKind::kThreads};
  config.engine = kEngines[options->io_engine];
  if (options->io_depth > 0) config.io.in_flight_max = options->io_depth;
  if (options->io_batch > 0) config.io.submit_batch_max = options->io_batch;
  config.executor = options->executor == SLUICE_EXECUTOR_THREADS ? ExecutorKind::kThreads : ExecutorKind::kTbb;
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

// Everything below runs inside this: a third party's exception, or memory that ran out, becomes a status.
#define SLUICE_C_BODY(...)                                                                            \
  try {                                                                                               \
    return Return([&]() -> absl::Status __VA_ARGS__());                                               \
  } catch (const std::bad_alloc&) {                                                                   \
    return Return(absl::ResourceExhaustedError("out of memory"));                                     \
  } catch (const std::exception& e) {                                                                 \
    return Return(absl::InternalError(e.what()));                                                     \
  }

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

uint32_t sluice_abi_version(void) { return SLUICE_ABI_VERSION; }
const char* sluice_version(void) { return SLUICE_VERSION; }
const char* sluice_last_error(void) { return last_error.c_str(); }

sluice_status sluice_model_create(sluice_model* model) SLUICE_C_BODY({
  SLUICE_RETURN_IF_ERROR(NotNull(model, "model"));
  *model = Models().Add(std::make_shared<ModelSpec>());
  return absl::OkStatus();
})

sluice_status sluice_model_add_unit(sluice_model model, const char* name, uint32_t* unit) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto spec, Models().Get(model, "model"));
  SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
  SLUICE_RETURN_IF_ERROR(NotNull(unit, "unit"));
  spec->units.push_back({.name = name});
  *unit = static_cast<uint32_t>(spec->units.size() - 1);
  return absl::OkStatus();
})

sluice_status sluice_model_add_tensor(sluice_model model, uint32_t unit, const char* name, int64_t elements,
                                      uint32_t group, uint32_t* tensor) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto spec, Models().Get(model, "model"));
  SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
  SLUICE_RETURN_IF_ERROR(NotNull(tensor, "tensor"));
  if (unit >= spec->units.size()) {
    return absl::InvalidArgumentError(fmt::format("unit {} does not exist; there are {}", unit, spec->units.size()));
  }
  if (elements <= 0) {
    return absl::InvalidArgumentError(fmt::format("tensor '{}' has {} elements; it must have at least one", name, elements));
  }
  spec->tensors.push_back({.name = name, .unit = UnitIndex(unit), .elements = elements, .group = group});
  *tensor = static_cast<uint32_t>(spec->tensors.size() - 1);
  return absl::OkStatus();
})

sluice_status sluice_model_destroy(sluice_model model) SLUICE_C_BODY({ return Models().Remove(model, "model").status(); })

sluice_status sluice_plan(sluice_model model, const sluice_options* options, char* json, size_t capacity,
                          size_t* needed) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto spec, GetModel(model));
  SLUICE_ASSIGN_OR_RETURN(const RuntimeConfig config, ToConfig(options));
  SLUICE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(*spec, config));
  return WriteText(PlacementJson(plan.layout, plan.placement, plan.budgets, config.placement), json, capacity, needed);
})

sluice_status sluice_runtime_create(sluice_model model, const sluice_options* options,
                                    sluice_runtime* runtime) SLUICE_C_BODY({
  SLUICE_RETURN_IF_ERROR(NotNull(runtime, "runtime"));
  SLUICE_ASSIGN_OR_RETURN(const auto spec, GetModel(model));
  SLUICE_ASSIGN_OR_RETURN(const RuntimeConfig config, ToConfig(options));
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Runtime> made, MakeRuntime(*spec, config));
  *runtime = AddRuntime(std::move(made));
  return absl::OkStatus();
})

sluice_status sluice_runtime_destroy(sluice_runtime runtime) SLUICE_C_BODY({
  return Runtimes().Remove(runtime, "runtime").status();
})

sluice_status sluice_wait(sluice_runtime runtime, sluice_ticket ticket, int32_t timeout_ms) {
  try {
    const auto found = Runtimes().Get(runtime, "runtime");
    if (!found.ok()) return Return(found.status());
    const std::chrono::milliseconds timeout(std::clamp(timeout_ms, 0, 100));
    const std::optional<absl::Status> result = (*found)->Wait(ticket, timeout);
    return result ? Return(*result) : SLUICE_PENDING;
  } catch (const std::exception& e) {
    return Return(absl::InternalError(e.what()));
  }
}

sluice_status sluice_iteration_begin(sluice_runtime runtime, uint32_t key, uint32_t flags) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckRange(key, 0, TraceBook::kKeys - 1, "key"));
  SLUICE_RETURN_IF_ERROR(CheckRange(flags, 0, SLUICE_ITERATION_BOUNDARY, "flags"));
  SLUICE_RETURN_IF_ERROR(r->failure());
  r->BeginIteration(key, (flags & SLUICE_ITERATION_BOUNDARY) != 0);
  return absl::OkStatus();
})

sluice_status sluice_iteration_end(sluice_runtime runtime) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  r->EndIteration();
  return r->failure();
})

sluice_status sluice_acquire(sluice_runtime runtime, uint32_t unit, void*, sluice_ticket* ticket) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
  *ticket = r->Acquire(UnitIndex(unit));
  return absl::OkStatus();
})

sluice_status sluice_release(sluice_runtime runtime, uint32_t unit, void*) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
  return r->Release(UnitIndex(unit));
})

sluice_status sluice_unit_view(sluice_runtime runtime, uint32_t unit, void** dlpack) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(dlpack, "dlpack"));
  SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
  SLUICE_ASSIGN_OR_RETURN(*dlpack, r->MakeView(UnitIndex(unit)));
  return absl::OkStatus();
})

sluice_status sluice_tensor_query(sluice_runtime runtime, uint32_t tensor, sluice_tensor_info* info) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckStruct(info, "info"));
  SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
  const TensorLayout& t = r->layout().tensors()[tensor];
  info->unit = t.unit.value();
  info->elements = t.elements;
  info->offset = t.offset;
  info->step = r->tensor_step(TensorIndex(tensor));
  return absl::OkStatus();
})

sluice_status sluice_tensor_set_step(sluice_runtime runtime, uint32_t tensor, int64_t step) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
  SLUICE_RETURN_IF_ERROR(CheckRange(step, 0, int64_t{1} << 48, "step"));
  r->set_tensor_step(TensorIndex(tensor), step);
  return absl::OkStatus();
})

sluice_status sluice_grad(sluice_runtime runtime, uint32_t tensor, const void* data, int64_t elements, void*,
                          sluice_ticket* ticket) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(data, "data"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
  SLUICE_RETURN_IF_ERROR(CheckElements(*r, tensor, elements));
  const auto bytes = static_cast<size_t>(elements * SizeOf(r->grad_type()));
  *ticket = r->PushGrad(TensorIndex(tensor), {static_cast<const std::byte*>(data), bytes});
  return absl::OkStatus();
})

sluice_status sluice_zero_grad(sluice_runtime runtime) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  r->ZeroGrad();
  return absl::OkStatus();
})

sluice_status sluice_step(sluice_runtime runtime, const sluice_step_args* args, sluice_ticket* ticket) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  SLUICE_ASSIGN_OR_RETURN(StepRequest request, ToStepRequest(args, *r));
  *ticket = r->Step(std::move(request));
  return absl::OkStatus();
})

sluice_status sluice_last_step(sluice_runtime runtime, sluice_step_result* result) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckStruct(result, "result"));
  const StepResult last = r->last_step();
  result->grad_norm = last.grad_norm;
  result->applied = last.applied ? 1 : 0;
  result->loss_scale = last.loss_scale;
  return absl::OkStatus();
})

sluice_status sluice_loss_scale(sluice_runtime runtime, double* scale) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(scale, "scale"));
  *scale = r->last_step().loss_scale;
  return absl::OkStatus();
})

sluice_status sluice_drain(sluice_runtime runtime, sluice_ticket* ticket) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  *ticket = r->Drain();
  return absl::OkStatus();
})

sluice_status sluice_read(sluice_runtime runtime, uint32_t tensor, int32_t field, void* data, int32_t dtype,
                          int64_t elements, sluice_ticket* ticket) SLUICE_C_BODY({
  return Access(runtime, tensor, field, data, dtype, elements, false, ticket);
})

sluice_status sluice_write(sluice_runtime runtime, uint32_t tensor, int32_t field, const void* data, int32_t dtype,
                           int64_t elements, sluice_ticket* ticket) SLUICE_C_BODY({
  return Access(runtime, tensor, field, const_cast<void*>(data), dtype, elements, true, ticket);
})

sluice_status sluice_report(sluice_runtime runtime, char* json, size_t capacity, size_t* needed) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  return WriteText(r->ReportJson(), json, capacity, needed);
})

sluice_status sluice_floor(sluice_runtime runtime, const sluice_rates* rates, sluice_floor_terms* terms) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(CheckStruct(rates, "rates"));
  SLUICE_RETURN_IF_ERROR(CheckStruct(terms, "terms"));
  const FloorTerms t = Floor(r->Traffic(), {.forward_seconds = rates->forward_seconds,
                                            .backward_seconds = rates->backward_seconds,
                                            .nvme_bytes = rates->nvme_bytes,
                                            .update_elements = rates->update_elements,
                                            .checksum_bytes = rates->checksum_bytes,
                                            .copy_bytes = rates->copy_bytes,
                                            .shared_cores = rates->shared_cores != 0});
  *terms = {terms->struct_size, t.total, t.forward, t.backward, t.io, t.update, t.checksum, t.copies, t.gradients};
  return absl::OkStatus();
})

sluice_status sluice_reset_counters(sluice_runtime runtime) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  r->ResetCounters();
  return absl::OkStatus();
})

sluice_status sluice_trace_write(sluice_runtime runtime, const char* path) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(path, "path"));
  return r->WriteTrace(path);
})

sluice_status sluice_trace_span(sluice_runtime runtime, const char* name, int64_t begin_ns,
                                int64_t end_ns) SLUICE_C_BODY({
  SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
  r->RecordCallerSpan(name, Nanos(begin_ns), Nanos(end_ns));
  return absl::OkStatus();
})

sluice_status sluice_doctor(const char* path, char* json, size_t capacity, size_t* needed) SLUICE_C_BODY({
  return WriteText(DoctorJson(path == nullptr ? "" : path), json, capacity, needed);
})
