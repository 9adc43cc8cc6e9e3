// The C ABI's arguments: handles, checks of everything a caller can get wrong, and statuses.

#include <pthread.h>

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"
#include "optim/adamw.h"

namespace sluice::c_api {

namespace {

thread_local std::string words;
thread_local const char* last_error = "";  // static, or of `words`

// Of fields that an older caller's groups lack.
constexpr sluice_group kGroupDefaults = {.struct_size = sizeof(sluice_group),
                                         .lr = 1e-3,
                                         .beta1 = 0.9,
                                         .beta2 = 0.999,
                                         .eps = 1e-8,
                                         .weight_decay = 0,
                                         .l2_decay = 0,
                                         .bias_correction = 1};

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
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return SLUICE_UNAVAILABLE;
    case absl::StatusCode::kPermissionDenied:
      return SLUICE_PERMISSION_DENIED;
    default:
      return SLUICE_INTERNAL;
  }
}

}  // namespace

Handles<Model>& Models() {
  static auto* models = new Handles<Model>('M');
  return *models;
}
Handles<OffloadRuntime>& Runtimes() {
  static auto* runtimes = new Handles<OffloadRuntime>('R');
  return *runtimes;
}

namespace {

void Lock() {
  Models().mutex()->lock();
  Runtimes().mutex()->lock();
}
void Unlock() {
  Runtimes().mutex()->unlock();
  Models().mutex()->unlock();
}

// A fork must not catch a table locked. (While the library is loaded: before anybody can have it.)
[[maybe_unused]] const int kForkRegistered = pthread_atfork(&Lock, &Unlock, &Unlock);

}  // namespace

absl::StatusOr<ModelSpec> SpecOf(sluice_model model) {
  SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
  const std::lock_guard lock(found->mutex);
  return found->spec;
}

absl::Status NotNull(const void* pointer, const char* name) {
  return pointer != nullptr ? absl::OkStatus()
                            : absl::InvalidArgumentError(fmt::format("{} is NULL", name));
}

absl::Status CheckExists(const char* what, uint32_t index, size_t count) {
  if (index < count) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} {} does not exist; there are {}", what, index, count));
}

absl::Status CheckUnit(const OffloadRuntime& runtime, uint32_t unit) {
  return CheckExists("unit", unit, runtime.layout().units().size());
}

absl::Status CheckTensor(const OffloadRuntime& runtime, uint32_t tensor) {
  return CheckExists("tensor", tensor, runtime.layout().tensors().size());
}

absl::Status CheckElements(const OffloadRuntime& runtime, uint32_t tensor, int64_t elements) {
  const TensorLayout& t = runtime.layout().tensors()[tensor];
  if (t.elements == elements) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor '{}' has {} elements, not {}", t.name, t.elements, elements));
}

absl::StatusOr<FloatType> ToFloatType(int32_t dtype, std::string_view name) {
  if (dtype >= SLUICE_F32 && dtype <= SLUICE_F16) return static_cast<FloatType>(dtype);
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; it must be 0 (fp32), 1 (bf16) or 2 (fp16)", name, dtype));
}

absl::StatusOr<UnitTypes> ToUnitTypes(int32_t param_dtype, int32_t grad_dtype,
                                      const std::string& unit) {
  if (param_dtype == SLUICE_BYTES) return UnitTypes{.param = ElementType::Bytes()};
  if (param_dtype < SLUICE_F32 || param_dtype > SLUICE_BYTES) {
    return absl::InvalidArgumentError(
        fmt::format("param_dtype of unit '{}' is {}; it must be 0 (fp32), 1 (bf16), 2 (fp16) or 3 "
                    "(bytes)",
                    unit, param_dtype));
  }
  SLUICE_ASSIGN_OR_RETURN(const FloatType grad,
                          ToFloatType(grad_dtype, fmt::format("grad_dtype of unit '{}'", unit)));
  return UnitTypes{.param = static_cast<FloatType>(param_dtype), .grad = grad};
}

absl::StatusOr<ElementType> ToElementType(const OffloadRuntime& runtime, uint32_t tensor,
                                          int32_t field, int32_t dtype) {
  const TensorLayout& t = runtime.layout().tensors()[tensor];
  const std::string& unit = runtime.layout().unit(t.unit).name;
  const bool of_parameter = field == SLUICE_PARAM || field == SLUICE_MASTER;
  if (t.types.param.is_bytes()) {
    if (dtype == SLUICE_BYTES && of_parameter) return ElementType::Bytes();
    return absl::InvalidArgumentError(
        fmt::format("unit '{}' of tensor '{}' is of bytes: it has no field but SLUICE_PARAM and "
                    "SLUICE_MASTER (which are the same), and dtype must be SLUICE_BYTES; field is "
                    "{}, dtype {}",
                    unit, t.name, field, dtype));
  }
  if (dtype == SLUICE_BYTES) {
    return absl::InvalidArgumentError(
        fmt::format("dtype is 3 (SLUICE_BYTES), but unit '{}' of tensor '{}' is of {}: name a "
                    "float type, or set the unit's types to SLUICE_BYTES before the runtime is "
                    "created",
                    unit, t.name, t.types.param.name()));
  }
  return ToFloatType(dtype, "dtype");
}

absl::Status CheckRange(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; it must be between {} and {}", name, value, low, high));
}

absl::Status CheckReal(double value, double low, double high, const char* name) {
  if (value >= low && value <= high) return absl::OkStatus();  // which a NaN is not
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

namespace {

absl::Status ReadPlaces(const sluice_step_args& args, const OffloadRuntime& runtime,
                        std::vector<ParamPlace>* places) {
  if (args.places == nullptr) return absl::OkStatus();
  const std::span<const TensorLayout> tensors = runtime.layout().tensors();
  if (args.place_count != tensors.size()) {
    return absl::InvalidArgumentError(
        fmt::format("place_count is {}; there are {} tensors", args.place_count, tensors.size()));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    void* const data = args.places[i].data;
    const absl::StatusOr<FloatType> type = ToFloatType(args.places[i].dtype, "dtype");
    if (!type.ok()) {
      return Annotate(type.status(), fmt::format("the place of tensor '{}'", tensors[i].name));
    }
    if (reinterpret_cast<uintptr_t>(data) % static_cast<size_t>(SizeOf(*type)) != 0) {
      return absl::InvalidArgumentError(
          fmt::format("the place of tensor '{}' is not aligned to its type", tensors[i].name));
    }
    places->push_back({static_cast<std::byte*>(data), *type});
  }
  return absl::OkStatus();
}

// Beyond it nothing sensible is meant, and products and quotients of two would leave fp32.
constexpr double kHyperMax = 1e15;
constexpr double kBetaMax = 1 - 0x1p-53;  // the largest below 1

absl::Status CheckGroup(const sluice_group& group) {
  SLUICE_RETURN_IF_ERROR(CheckReal(group.lr, 0, kHyperMax, "lr"));
  SLUICE_RETURN_IF_ERROR(CheckReal(group.beta1, 0, kBetaMax, "beta1"));
  SLUICE_RETURN_IF_ERROR(CheckReal(group.beta2, 0, kBetaMax, "beta2"));
  SLUICE_RETURN_IF_ERROR(CheckReal(group.eps, 0, kHyperMax, "eps"));
  SLUICE_RETURN_IF_ERROR(CheckReal(group.weight_decay, -kHyperMax, kHyperMax, "weight_decay"));
  SLUICE_RETURN_IF_ERROR(CheckRange(group.l2_decay, 0, 1, "l2_decay"));
  return CheckRange(group.bias_correction, 0, 1, "bias_correction");
}

}  // namespace

absl::Status ReadStep(const sluice_step_args* given, const OffloadRuntime& runtime,
                      StepRequest* request) {
  SLUICE_ASSIGN_OR_RETURN(const sluice_step_args args, ReadStruct(given, {}, "args"));
  SLUICE_RETURN_IF_ERROR(NotNull(args.groups, "args.groups"));
  SLUICE_RETURN_IF_ERROR(CheckRange(args.group_count, 1, kGroupsMax, "args.group_count"));
  SLUICE_RETURN_IF_ERROR(CheckReal(args.clip_norm, 0, DBL_MAX, "clip_norm"));
  request->clip_norm = args.clip_norm;
  // An older caller's groups are shorter, and so are the steps from one to the next.
  SLUICE_RETURN_IF_ERROR(CheckStruct(args.groups, "group"));
  const size_t stride = args.groups->struct_size;
  for (uint32_t g = 0; g < args.group_count; ++g) {
    const auto* at = reinterpret_cast<const sluice_group*>(
        reinterpret_cast<const std::byte*>(args.groups) + g * stride);
    if (at->struct_size != stride) {
      return absl::InvalidArgumentError(fmt::format(
          "group {}: struct_size is {}, but {} in the first", g, at->struct_size, stride));
    }
    SLUICE_ASSIGN_OR_RETURN(const sluice_group group, ReadStruct(at, kGroupDefaults, "group"));
    if (const absl::Status wrong = CheckGroup(group); !wrong.ok())
      return Annotate(wrong, fmt::format("group {}", g));
    request->groups.push_back(Hyperparameters::Of(AdamWHyper{
        .lr = group.lr,
        .beta1 = group.beta1,
        .beta2 = group.beta2,
        .eps = group.eps,
        .weight_decay = group.weight_decay,
        .decay_mode = group.l2_decay != 0 ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled,
        .bias_correction = group.bias_correction != 0}));
  }
  for (const TensorLayout& tensor : runtime.layout().tensors()) {
    if (tensor.group < args.group_count) continue;
    return absl::InvalidArgumentError(
        fmt::format("tensor '{}' is in group {}, but the step has {} groups", tensor.name,
                    tensor.group, args.group_count));
  }
  return ReadPlaces(args, runtime, &request->lent);
}

sluice_status Return(const absl::Status& status) noexcept {
  if (status.ok()) return SLUICE_OK;
  try {
    words = Message(status);
    last_error = words.c_str();
  } catch (const std::bad_alloc&) {
    last_error = "there is no memory for the words of this error";
  }
  return CodeOf(status);
}

sluice_status ReturnOutOfMemory() noexcept {
  last_error = "out of memory: nothing was done, and the call can be made again";
  return SLUICE_RESOURCE_EXHAUSTED;
}

sluice_status ReturnInternal(const char* what) noexcept {
  try {
    return Return(absl::InternalError(what));
  } catch (const std::bad_alloc&) {
    return ReturnOutOfMemory();
  }
}

const char* LastError() { return last_error; }

sluice_runtime AddRuntime(std::unique_ptr<OffloadRuntime> runtime) {
  return Runtimes().Add(std::shared_ptr<OffloadRuntime>(runtime.release(), RuntimeCloser()));
}

namespace {

constexpr int64_t kBytesMax = INT64_MAX / 4;

// 0 or a scale that fp32 has, as its inverse.
absl::Status CheckScale(double value, const char* name) {
  return value == 0 ? absl::OkStatus() : CheckReal(value, FLT_MIN, 1 / double{FLT_MIN}, name);
}

absl::StatusOr<LossScaleOptions> ToLossScale(const sluice_options& o) {
  SLUICE_RETURN_IF_ERROR(CheckScale(o.static_loss_scale, "static_loss_scale"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.initial_scale_power, 0, 126, "initial_scale_power"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.hysteresis, 1, INT32_MAX, "hysteresis"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.loss_scale_window, 1, INT64_MAX, "loss_scale_window"));
  SLUICE_RETURN_IF_ERROR(CheckScale(o.min_loss_scale, "min_loss_scale"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.consecutive_hysteresis, 0, 1, "consecutive_hysteresis"));
  return LossScaleOptions{.static_scale = o.static_loss_scale,
                          .initial_scale_power = o.initial_scale_power,
                          .window = o.loss_scale_window,
                          .hysteresis = o.hysteresis,
                          .consecutive_hysteresis = o.consecutive_hysteresis != 0,
                          .min_scale = o.min_loss_scale};
}

absl::StatusOr<PlacementOptions> ToPlacement(const sluice_options& o) {
  PlacementOptions placement;
  SLUICE_RETURN_IF_ERROR(
      CheckRange(o.lowest_param_tier, SLUICE_HBM, SLUICE_NVME, "lowest_param_tier"));
  SLUICE_RETURN_IF_ERROR(
      CheckRange(o.lowest_state_tier, SLUICE_HBM, SLUICE_NVME, "lowest_state_tier"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.reduction, 0, 1, "reduction"));
  placement.reduction = static_cast<ReductionMode>(o.reduction);
  placement.lowest_param_tier = static_cast<Tier>(o.lowest_param_tier);
  placement.lowest_state_tier = static_cast<Tier>(o.lowest_state_tier);
  SLUICE_RETURN_IF_ERROR(
      CheckRange(o.resident_elements_max, -1, INT64_MAX, "resident_elements_max"));
  if (o.resident_elements_max >= 0) placement.resident_elements_max = o.resident_elements_max;
  return placement;
}

absl::StatusOr<std::vector<std::string>> ToPaths(const sluice_options& o) {
  SLUICE_RETURN_IF_ERROR(CheckRange(o.nvme_path_count, 0, 256, "nvme_path_count"));
  std::vector<std::string> paths;
  for (uint32_t i = 0; i < o.nvme_path_count; ++i) {
    SLUICE_RETURN_IF_ERROR(NotNull(o.nvme_paths, "nvme_paths"));
    SLUICE_RETURN_IF_ERROR(NotNull(o.nvme_paths[i], "nvme_paths[i]"));
    paths.emplace_back(o.nvme_paths[i]);
  }
  return paths;
}

}  // namespace

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* given) {
  SLUICE_ASSIGN_OR_RETURN(const sluice_options o,
                          ReadStruct(given, SLUICE_OPTIONS_INIT, "options"));
  RuntimeConfig config;
  SLUICE_ASSIGN_OR_RETURN(config.types.param, ToFloatType(o.param_dtype, "param_dtype"));
  SLUICE_ASSIGN_OR_RETURN(config.types.grad, ToFloatType(o.grad_dtype, "grad_dtype"));
  SLUICE_ASSIGN_OR_RETURN(config.placement, ToPlacement(o));
  SLUICE_ASSIGN_OR_RETURN(config.loss_scale, ToLossScale(o));
  SLUICE_ASSIGN_OR_RETURN(config.nvme_paths, ToPaths(o));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.hbm_bytes, -1, kBytesMax, "hbm_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.pinned_bytes, -1, kBytesMax, "pinned_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.nvme_bytes, -1, kBytesMax, "nvme_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_engine, SLUICE_IO_AUTO, SLUICE_IO_LIBAIO, "io_engine"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.device, SLUICE_DEVICE_AUTO, SLUICE_DEVICE_CUDA, "device"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.device_index, 0, 1023, "device_index"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.workers, 0, 1024, "workers"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_depth, 0, 1024, "io_depth"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_batch, 0, 1024, "io_batch"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.chunk_elements, 0, int64_t{1} << 30, "chunk_elements"));
  // Slower, and the time of a copy would not be a number of nanoseconds.
  if (o.link_bytes_per_second != 0) {
    SLUICE_RETURN_IF_ERROR(
        CheckReal(o.link_bytes_per_second, 1e3, 1e18, "link_bytes_per_second, if not 0,"));
  }
  SLUICE_RETURN_IF_ERROR(CheckRange(o.overlap, 0, 1, "overlap"));
  if (o.trace_spans_max > uint64_t{1} << 26) {
    return absl::InvalidArgumentError(fmt::format("trace_spans_max is {}; it must be at most {}",
                                                  o.trace_spans_max, uint64_t{1} << 26));
  }
  config.budgets = {Bytes(o.hbm_bytes), Bytes(o.pinned_bytes), Bytes(o.nvme_bytes)};
  constexpr IoEngineKind kEngines[] = {IoEngineKind::kAuto, IoEngineKind::kIoUring,
                                       IoEngineKind::kThreads, IoEngineKind::kLibaio};
  config.engine = kEngines[o.io_engine];
  if (o.io_depth > 0) config.io.in_flight_max = o.io_depth;
  if (o.io_batch > 0) config.io.submit_batch_max = o.io_batch;
  config.workers = o.workers;
  config.chunk_elements = o.chunk_elements;
  config.device = static_cast<DeviceKind>(o.device);
  config.device_index = o.device_index;
  if (o.hbm_memory != nullptr)
    config.hbm = std::make_shared<SuppliedMemory>(static_cast<DlManagedTensor*>(o.hbm_memory));
  config.link_bytes_per_second = o.link_bytes_per_second;
  config.overlap = o.overlap != 0;
  config.trace_spans_max = o.trace_spans_max;
  SLUICE_RETURN_IF_ERROR(ToSharding(o, &config));
  return config;
}

}  // namespace sluice::c_api
