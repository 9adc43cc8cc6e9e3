// offload/sluice.hpp
//
// The C ABI for C++20: handles that clean up after themselves, statuses with their words, spans. A
// header only; it adds nothing to what the library does, so sluice.h says what each call promises,
// from which thread, and with which errors. Nothing here throws, and nothing here waits but Wait.
//
//   auto model = sluice::Model::Create();
//   if (!model.ok()) return model.status();
//   auto unit = model->AddUnit("layer0");
//   ...
//   auto runtime = sluice::Runtime::Create(*model, options);
//
// What an operation started is finished by Wait(ticket), also its error. Nothing that was passed to
// a call with a ticket may be freed before.

#ifndef SLUICE_OFFLOAD_SLUICE_HPP_
#define SLUICE_OFFLOAD_SLUICE_HPP_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "sluice.h"  // beside this file, here and where it is installed
#include "sluice_checkpoint.h"

namespace sluice {
inline namespace abi1 {

// A code, and if it is not SLUICE_OK the library's words for it.
class [[nodiscard]] Status {
 public:
  Status() = default;
  // What a call has just returned on this thread.
  static Status Of(sluice_status code) {
    Status status;
    status.code_ = code;
    if (code != SLUICE_OK) status.message_ = sluice_last_error();
    return status;
  }
  bool ok() const { return code_ == SLUICE_OK; }
  sluice_status code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  sluice_status code_ = SLUICE_OK;
  std::string message_;
};

// A value, or why there is none. `*result` and `result->` only if ok().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: `return status;`; not ok
  Result(T value) : value_(std::move(value)) {}          // NOLINT: `return value;`
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

enum class Unit : uint32_t {};
enum class Tensor : uint32_t {};
enum class Ticket : uint64_t {};
enum class Field : int32_t {
  kParam = SLUICE_PARAM,
  kMaster = SLUICE_MASTER,
  kExpAvg = SLUICE_EXP_AVG,
  kExpAvgSq = SLUICE_EXP_AVG_SQ,
  kGrad = SLUICE_GRAD
};
enum class Iteration : uint32_t { kMicroStep = 0, kBoundary = SLUICE_ITERATION_BOUNDARY };

namespace internal {

// The text of a function that writes JSON. It may grow between the two calls.
template <typename Call>
Result<std::string> Json(Call call) {
  size_t needed = 0;
  std::string text;
  do {
    text.resize(needed);
    if (const Status status = Status::Of(call(text.data(), text.size(), &needed)); !status.ok())
      return status;
  } while (needed > text.size());
  text.resize(needed - 1);  // without the terminating 0
  return text;
}

// DLPack 0.6.
struct DlManagedTensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t dtype_code, dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
  void* manager_ctx;
  void (*deleter)(DlManagedTensor* self);
};

}  // namespace internal

// A description of a model, which runtimes are created from.
class Model {
 public:
  static Result<Model> Create() {
    Model model;
    if (const Status status = Status::Of(sluice_model_create(&model.handle_)); !status.ok())
      return status;
    return model;
  }
  Model(Model&& other) noexcept : handle_(std::exchange(other.handle_, 0)) {}
  Model& operator=(Model&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  ~Model() {
    if (handle_ != 0) sluice_model_destroy(handle_);
  }

  Result<Unit> AddUnit(const char* name) {
    uint32_t unit = 0;
    if (const Status s = Status::Of(sluice_model_add_unit(handle_, name, &unit)); !s.ok()) return s;
    return Unit{unit};
  }
  Result<Tensor> AddTensor(Unit unit, const char* name, int64_t elements, uint32_t group = 0) {
    uint32_t tensor = 0;
    const Status status = Status::Of(sluice_model_add_tensor(handle_, static_cast<uint32_t>(unit),
                                                             name, elements, group, &tensor));
    if (!status.ok()) return status;
    return Tensor{tensor};
  }
  // The unit lives in HBM for good, as others are acquired while it is.
  Status KeepInHbm(Unit unit) {
    return Status::Of(sluice_model_keep_in_hbm(handle_, static_cast<uint32_t>(unit)));
  }
  // What of the tensor is kept: everything, unless this says otherwise.
  Status SetKeep(Tensor tensor, sluice_keep keep) {
    return Status::Of(sluice_model_set_keep(handle_, static_cast<uint32_t>(tensor), keep));
  }
  // Of the unit's compute copies and gradients, instead of the options'. SLUICE_BYTES: if all of it
  // is frozen.
  Status SetUnitTypes(Unit unit, sluice_dtype param, sluice_dtype grad) {
    return Status::Of(
        sluice_model_set_unit_types(handle_, static_cast<uint32_t>(unit), param, grad));
  }
  // What would be placed where.
  Result<std::string> PlanJson(const sluice_options& options) const {
    return internal::Json([&](char* json, size_t capacity, size_t* needed) {
      return sluice_plan(handle_, &options, json, capacity, needed);
    });
  }
  sluice_model handle() const { return handle_; }

 private:
  Model() = default;
  sluice_model handle_ = 0;
};

// sluice_options with its defaults.
struct Options : sluice_options {
  Options() : sluice_options(SLUICE_OPTIONS_INIT) {}
};

// An acquired unit's memory. It is not reused while this lives, even after the unit was released.
class UnitView {
 public:
  explicit UnitView(void* dlpack) : tensor_(static_cast<internal::DlManagedTensor*>(dlpack)) {}
  UnitView(UnitView&& other) noexcept : tensor_(std::exchange(other.tensor_, nullptr)) {}
  UnitView& operator=(UnitView&& other) noexcept {
    return std::swap(tensor_, other.tensor_), *this;
  }
  ~UnitView() {
    if (tensor_ != nullptr) tensor_->deleter(tensor_);
  }

  int64_t elements() const { return tensor_->shape[0]; }
  // Of the unit's param_dtype; on a CUDA device, memory of the device.
  void* data() const { return static_cast<std::byte*>(tensor_->data) + tensor_->byte_offset; }
  // If the unit's param_dtype is SLUICE_F32 and the device is the host.
  std::span<const float> f32() const {
    return {static_cast<const float*>(data()), static_cast<size_t>(elements())};
  }

 private:
  internal::DlManagedTensor* tensor_;
};

// A running engine. Moving it is not thread-safe; every other call is.
class Runtime {
 public:
  static Result<Runtime> Create(const Model& model, const sluice_options& options) {
    Runtime runtime;
    const Status status =
        Status::Of(sluice_runtime_create(model.handle(), &options, &runtime.handle_));
    if (!status.ok()) return status;
    return runtime;
  }
  Runtime(Runtime&& other) noexcept : handle_(std::exchange(other.handle_, 0)) {}
  Runtime& operator=(Runtime&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  // As Close, but its status is lost.
  ~Runtime() { (void)Close(); }
  // Drains updates in flight for a few seconds, and gives everything back; or says what hangs.
  Status Close() {
    const sluice_runtime handle = std::exchange(handle_, 0);
    return handle == 0 ? Status() : Status::Of(sluice_runtime_destroy(handle));
  }

  // The result of `ticket`, or nothing if it is not done within timeout_ms (at most 100).
  std::optional<Status> Poll(Ticket ticket, int32_t timeout_ms) {
    const sluice_status code = sluice_wait(handle_, static_cast<uint64_t>(ticket), timeout_ms);
    if (code == SLUICE_PENDING) return std::nullopt;
    return Status::Of(code);
  }
  // Blocks until `ticket` is done.
  Status Wait(Ticket ticket) {
    for (;;) {
      if (const std::optional<Status> status = Poll(ticket, 100)) return *status;
    }
  }
  Status Wait(const Result<Ticket>& ticket) {
    return ticket.ok() ? Wait(*ticket) : ticket.status();
  }

  Status BeginIteration(uint32_t key, Iteration kind) {
    return Status::Of(sluice_iteration_begin(handle_, key, static_cast<uint32_t>(kind)));
  }
  Status EndIteration() { return Status::Of(sluice_iteration_end(handle_)); }

  Result<Ticket> Acquire(Unit unit, void* stream = nullptr) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_acquire(handle_, static_cast<uint32_t>(unit), stream, ticket);
    });
  }
  Status Release(Unit unit, void* stream = nullptr) {
    return Status::Of(sluice_release(handle_, static_cast<uint32_t>(unit), stream));
  }
  Result<UnitView> View(Unit unit) {
    void* dlpack = nullptr;
    const Status status =
        Status::Of(sluice_unit_view(handle_, static_cast<uint32_t>(unit), &dlpack));
    if (!status.ok()) return status;
    return UnitView(dlpack);
  }
  Result<sluice_tensor_info> Query(Tensor tensor) {
    sluice_tensor_info info{};
    info.struct_size = sizeof(info);
    const Status status =
        Status::Of(sluice_tensor_query(handle_, static_cast<uint32_t>(tensor), &info));
    if (!status.ok()) return status;
    return info;
  }

  // Adds to the gradient. `data` holds values of the unit's grad_dtype; float is SLUICE_F32.
  Result<Ticket> Grad(Tensor tensor, std::span<const float> data) {
    return Grad(tensor, data.data(), static_cast<int64_t>(data.size()), nullptr);
  }
  Result<Ticket> Grad(Tensor tensor, const void* data, int64_t elements, void* stream) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_grad(handle_, static_cast<uint32_t>(tensor), data, elements, stream, ticket);
    });
  }
  Result<Ticket> Grads(std::span<const sluice_gradient> gradients, void* stream = nullptr) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_grads(handle_, gradients.data(), gradients.size(), stream, ticket);
    });
  }
  Status ZeroGrad() { return Status::Of(sluice_zero_grad(handle_)); }
  Status ClearGrad(Tensor tensor) {
    return Status::Of(sluice_grad_clear(handle_, static_cast<uint32_t>(tensor)));
  }

  // clip_norm 0: no clipping. places: by tensor, where the parameters of those lie that stay with
  // the caller. LastStep says what was decided when the ticket is done.
  Result<Ticket> Step(std::span<const sluice_group> groups, double clip_norm,
                      std::span<const sluice_place> places = {}) {
    const sluice_step_args args = {
        sizeof(args), groups.data(), static_cast<uint32_t>(groups.size()),
        clip_norm,    places.data(), places.size()};
    return Started([&](sluice_ticket* ticket) { return sluice_step(handle_, &args, ticket); });
  }
  Result<sluice_step_result> LastStep() {
    sluice_step_result result{};
    result.struct_size = sizeof(result);
    if (const Status s = Status::Of(sluice_last_step(handle_, &result)); !s.ok()) return s;
    return result;
  }
  Result<Ticket> Drain() {
    return Started([&](sluice_ticket* ticket) { return sluice_drain(handle_, ticket); });
  }

  // The whole tensor, as fp32.
  Result<Ticket> Read(Tensor tensor, Field field, std::span<float> out) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_read(handle_, static_cast<uint32_t>(tensor), static_cast<int32_t>(field),
                         out.data(), SLUICE_F32, static_cast<int64_t>(out.size()), ticket);
    });
  }
  Result<Ticket> Write(Tensor tensor, Field field, std::span<const float> values) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_write(handle_, static_cast<uint32_t>(tensor), static_cast<int32_t>(field),
                          values.data(), SLUICE_F32, static_cast<int64_t>(values.size()), ticket);
    });
  }

  // The whole tensor of a unit of SLUICE_BYTES, as it is.
  Result<Ticket> ReadBytes(Tensor tensor, std::span<std::byte> out) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_read(handle_, static_cast<uint32_t>(tensor), SLUICE_PARAM, out.data(),
                         SLUICE_BYTES, static_cast<int64_t>(out.size()), ticket);
    });
  }
  Result<Ticket> WriteBytes(Tensor tensor, std::span<const std::byte> bytes) {
    return Started([&](sluice_ticket* ticket) {
      return sluice_write(handle_, static_cast<uint32_t>(tensor), SLUICE_PARAM, bytes.data(),
                          SLUICE_BYTES, static_cast<int64_t>(bytes.size()), ticket);
    });
  }

  // A checkpoint: sluice_checkpoint.h. `args`: from SLUICE_SAVE_INIT, SLUICE_LOAD_INIT.
  Result<Ticket> Save(const sluice_save_args& args) {
    return Started([&](sluice_ticket* ticket) { return sluice_save(handle_, &args, ticket); });
  }
  Result<Ticket> Load(const sluice_load_args& args) {
    return Started([&](sluice_ticket* ticket) { return sluice_load(handle_, &args, ticket); });
  }

  Result<std::string> ReportJson() {
    return internal::Json([&](char* json, size_t capacity, size_t* needed) {
      return sluice_report(handle_, json, capacity, needed);
    });
  }
  Status WriteTrace(const char* path) { return Status::Of(sluice_trace_write(handle_, path)); }
  sluice_runtime handle() const { return handle_; }  // for calls that have no method here

 private:
  Runtime() = default;
  template <typename Call>
  static Result<Ticket> Started(Call call) {
    sluice_ticket ticket = 0;
    if (const Status status = Status::Of(call(&ticket)); !status.ok()) return status;
    return Ticket{ticket};
  }
  sluice_runtime handle_ = 0;
};

// What this machine has, what would be chosen, and advice. `path` may be null.
inline Result<std::string> DoctorJson(const char* path) {
  return internal::Json([&](char* json, size_t capacity, size_t* needed) {
    return sluice_doctor(path, json, capacity, needed);
  });
}

// What the blocks on the drives are verified with, for a caller's own files.
inline Result<uint64_t> Checksum(std::span<const std::byte> data, uint32_t block,
                                 uint64_t generation) {
  uint64_t checksum = 0;
  const Status status =
      Status::Of(sluice_checksum(data.data(), data.size(), block, generation, &checksum));
  if (!status.ok()) return status;
  return checksum;
}

}  // namespace abi1
}  // namespace sluice

#endif  // SLUICE_OFFLOAD_SLUICE_HPP_
