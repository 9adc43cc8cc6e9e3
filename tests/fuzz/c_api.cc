// The C ABI with any model and any structs: an error with words or a plan that keeps its budgets;
// never a crash, nor a byte read beyond a struct. Pointers are sound: what they point to is the
// caller's word.

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "nlohmann/json.hpp"
#include "offload/sluice.h"

namespace {

using Input = FuzzedDataProvider;

// A struct of the size it says it has, in memory that ends there, some of its words any bits.
template <typename T>
class AnyStruct {
 public:
  AnyStruct(Input* input, T value) {
    const size_t mutations = input->ConsumeIntegralInRange<size_t>(0, 8);
    for (size_t i = 0; i < mutations; ++i) {
      const size_t at = 4 * input->ConsumeIntegralInRange<size_t>(0, sizeof(T) / 4 - 1);
      const auto bits =
          input->ConsumeBool()
              ? input->ConsumeIntegral<uint32_t>()
              : static_cast<uint32_t>(input->ConsumeIntegralInRange<int32_t>(-2, 300));
      std::memcpy(reinterpret_cast<char*>(&value) + at, &bits, 4);
    }
    value.struct_size =
        input->ConsumeBool() ? sizeof(T) : input->ConsumeIntegralInRange<size_t>(0, 600);
    memory_ = std::make_unique<char[]>(std::max<size_t>(value.struct_size, sizeof(size_t)));
    std::memcpy(memory_.get(), &value, std::min(value.struct_size, sizeof(T)));
    std::memcpy(memory_.get(), &value.struct_size, sizeof(size_t));
  }
  T* get() { return reinterpret_cast<T*>(memory_.get()); }

  // Puts a pointer back, if the struct reaches that far.
  template <typename P>
  void Set(size_t offset, P pointer) {
    if (get()->struct_size >= offset + sizeof(P))
      std::memcpy(memory_.get() + offset, &pointer, sizeof(P));
  }

 private:
  std::unique_ptr<char[]> memory_;
};

sluice_model AnyModel(Input* input) {
  sluice_model model = 0;
  SLUICE_CHECK(sluice_model_create(&model) == SLUICE_OK);
  uint32_t number = 0;
  const auto units = input->ConsumeIntegralInRange<uint32_t>(0, 5);
  for (uint32_t u = 0; u < units; ++u)
    SLUICE_CHECK(sluice_model_add_unit(model, "u", &number) == 0);
  const auto type = [input] { return input->ConsumeIntegralInRange<int32_t>(-1, 4); };
  for (uint32_t u = 0; u <= units; ++u) {
    if (input->ConsumeBool()) (void)sluice_model_set_unit_types(model, u, type(), type());
  }
  const auto tensors = input->ConsumeIntegralInRange<uint32_t>(0, 8);
  for (uint32_t t = 0; t < tensors; ++t) {
    // Beyond 2^28 a plan takes its time, up to the limit where it is refused.
    int64_t elements = input->ConsumeIntegral<int64_t>();
    if (elements > 0 && elements <= int64_t{1} << 40) elements %= int64_t{1} << 28;
    (void)sluice_model_add_tensor(model, input->ConsumeIntegralInRange<uint32_t>(0, units),
                                  input->ConsumeRandomLengthString(8).c_str(), elements,
                                  input->ConsumeIntegralInRange<uint32_t>(0, 3), &number);
    if (input->ConsumeBool())
      (void)sluice_model_set_keep(model, t, input->ConsumeIntegralInRange<int32_t>(-1, 3));
  }
  return model;
}

void CheckPlan(const std::string& json) {
  const nlohmann::json plan = nlohmann::json::parse(json.c_str());
  for (const char* tier : {"hbm", "pinned", "nvme"})
    SLUICE_CHECK(plan["budgets_bytes"][tier].is_null() ||
                 plan["planned_bytes"][tier] <= plan["budgets_bytes"][tier]);
}

void Plan(Input* input) {
  static const std::vector<const char*> kPaths(256, "/nowhere");
  const sluice_model model = AnyModel(input);
  sluice_options defaults = SLUICE_OPTIONS_INIT;
  defaults.device = SLUICE_DEVICE_HOST;
  defaults.hbm_bytes = input->ConsumeIntegralInRange<int64_t>(-1, int64_t{1} << 34);
  defaults.pinned_bytes = input->ConsumeIntegralInRange<int64_t>(-1, int64_t{1} << 36);
  AnyStruct<sluice_options> options(input, defaults);
  options.Set(offsetof(sluice_options, nvme_paths), kPaths.data());
  options.Set(offsetof(sluice_options, hbm_memory), static_cast<void*>(nullptr));
  options.Set(offsetof(sluice_options, comm), static_cast<const sluice_comm_table*>(nullptr));
  options.Set(offsetof(sluice_options, give_up), static_cast<const int32_t*>(nullptr));
  options.Set(offsetof(sluice_options, tuned), static_cast<const char*>(nullptr));
  std::string json(1 << 14, '\0');
  size_t needed = 0;
  if (sluice_plan(model, options.get(), json.data(), json.size(), &needed) == SLUICE_OK) {
    SLUICE_CHECK(needed <= json.size());
    CheckPlan(json);
  } else {
    SLUICE_CHECK(*sluice_last_error() != '\0');
  }
  SLUICE_CHECK(sluice_model_destroy(model) == SLUICE_OK);
}

sluice_status Wait(sluice_runtime runtime, sluice_ticket ticket) {
  sluice_status status = SLUICE_PENDING;
  while (status == SLUICE_PENDING) status = sluice_wait(runtime, ticket, 100);
  return status;
}

constexpr int64_t kElements = 10;

// A small runtime, made once, that every step and question goes to: a tensor that is trained, and
// one of bytes.
sluice_runtime SmallRuntime() {
  sluice_model model = 0;
  uint32_t number = 0;
  SLUICE_CHECK(sluice_model_create(&model) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_add_unit(model, "u", &number) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_add_tensor(model, 0, "t", kElements, 0, &number) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_add_unit(model, "bytes", &number) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_add_tensor(model, 1, "b", kElements, 0, &number) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_set_unit_types(model, 0, SLUICE_BF16, SLUICE_F16) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_set_unit_types(model, 1, SLUICE_BYTES, 0) == SLUICE_OK);
  SLUICE_CHECK(sluice_model_set_keep(model, 1, SLUICE_KEEP_PARAM) == SLUICE_OK);
  sluice_options options = SLUICE_OPTIONS_INIT;
  options.device = SLUICE_DEVICE_HOST;
  options.hbm_bytes = options.pinned_bytes = 1 << 20;
  options.workers = 1;
  options.io_engine = SLUICE_IO_THREADS;
  sluice_runtime runtime = 0;
  SLUICE_CHECK(sluice_runtime_create(model, &options, &runtime) == SLUICE_OK);
  const float values[kElements] = {};
  for (uint32_t t = 0; t < 2; ++t) {
    sluice_ticket ticket = 0;
    SLUICE_CHECK(sluice_write(runtime, t, SLUICE_MASTER, values, t == 0 ? SLUICE_F32 : SLUICE_BYTES,
                              kElements, &ticket) == SLUICE_OK);
    SLUICE_CHECK(Wait(runtime, ticket) == SLUICE_OK);
  }
  return runtime;
}

// Reads and writes of any field in any type, gradients set, pushed and cleared. The values end
// where they must end.
void Access(sluice_runtime runtime, Input* input) {
  const auto calls = input->ConsumeIntegralInRange<size_t>(0, 6);
  for (size_t i = 0; i < calls; ++i) {
    const auto tensor = input->ConsumeIntegralInRange<uint32_t>(0, 2);
    const auto field = input->ConsumeIntegralInRange<int32_t>(-1, 5);
    const auto dtype = input->ConsumeIntegralInRange<int32_t>(-1, 4);
    const int64_t elements = input->ConsumeBool() ? kElements : input->ConsumeIntegral<int64_t>();
    const size_t size = dtype == SLUICE_F32 ? 4 : dtype == SLUICE_BYTES ? 1 : 2;
    std::vector<char> data = input->ConsumeBytes<char>(kElements * size);
    data.resize(kElements * size);
    sluice_ticket ticket = 0;
    sluice_status status = SLUICE_OK;
    switch (input->ConsumeIntegralInRange<int>(0, 3)) {
      case 0:
        status = sluice_read(runtime, tensor, field, data.data(), dtype, elements, &ticket);
        break;
      case 1:
        status = sluice_write(runtime, tensor, field, data.data(), dtype, elements, &ticket);
        break;
      case 2:
        data.resize(kElements * 2);  // of fp16
        status = sluice_grad(runtime, tensor, data.data(), elements, nullptr, &ticket);
        break;
      default:
        status = sluice_grad_clear(runtime, tensor);
    }
    if (status == SLUICE_OK && ticket != 0) status = Wait(runtime, ticket);
    SLUICE_CHECK(status != SLUICE_INTERNAL && status != SLUICE_DATA_LOSS);
    if (status != SLUICE_OK) SLUICE_CHECK(*sluice_last_error() != '\0');
  }
}

void Ask(Input* input) {
  static const sluice_runtime runtime = SmallRuntime();
  Access(runtime, input);
  AnyStruct<sluice_rates> rates(input, {});
  AnyStruct<sluice_floor_terms> terms(input, {});
  (void)sluice_floor(runtime, rates.get(), terms.get());
  (void)sluice_set_rates(runtime, rates.get());
  AnyStruct<sluice_tensor_info> info(input, {});
  (void)sluice_tensor_query(runtime, input->ConsumeIntegralInRange<uint32_t>(0, 2), info.get());
  AnyStruct<sluice_step_result> result(input, {});
  (void)sluice_last_step(runtime, result.get());

  AnyStruct<sluice_group> group(input, {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8});
  AnyStruct<sluice_step_args> args(input, {});
  args.Set(offsetof(sluice_step_args, groups), static_cast<const sluice_group*>(group.get()));
  args.Set(offsetof(sluice_step_args, group_count), uint32_t{1});
  const sluice_place place{nullptr, input->ConsumeIntegralInRange<int32_t>(-1, 4), 0};
  args.Set(offsetof(sluice_step_args, places), input->ConsumeBool() ? &place : nullptr);
  sluice_ticket ticket = 0;
  if (sluice_step(runtime, args.get(), &ticket) != SLUICE_OK) return;
  SLUICE_CHECK(Wait(runtime, ticket) == SLUICE_OK);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  if (input.ConsumeBool()) {
    Plan(&input);
  } else {
    Ask(&input);
  }
  return 0;
}
