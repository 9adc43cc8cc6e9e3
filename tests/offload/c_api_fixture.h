// tests/offload/c_api_fixture.h
//
// A small model and its runtime over the C ABI, as an embedding framework sees it: everything in
// RAM, one worker. And every function that takes a runtime, for tests that hold for all of them.

#ifndef SLUICE_TESTS_OFFLOAD_C_API_FIXTURE_H_
#define SLUICE_TESTS_OFFLOAD_C_API_FIXTURE_H_

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "offload/sluice.h"
#include "offload/sluice_checkpoint.h"

namespace sluice {

inline sluice_options DefaultOptions() {
  sluice_options options = SLUICE_OPTIONS_INIT;
  options.hbm_bytes = 1 << 20;
  options.pinned_bytes = 4 << 20;
  options.workers = 1;
  options.resident_elements_max = 16;
  options.device = SLUICE_DEVICE_HOST;  // tests look into views
  return options;
}

inline sluice_group DefaultGroup() {
  return {.struct_size = sizeof(sluice_group),
          .lr = 0.1,
          .beta1 = 0.9,
          .beta2 = 0.999,
          .eps = 1e-8,
          .weight_decay = 0,
          .l2_decay = 0,
          .bias_correction = 1};
}

// The first `size` bytes of a struct, as an older caller has them: memory that ends there.
template <typename T>
std::unique_ptr<T, void (*)(void*)> Shorter(const T& value, size_t size) {
  auto* memory = static_cast<T*>(std::malloc(size));
  std::memcpy(static_cast<void*>(memory), &value, size);
  memory->struct_size = size;
  return {memory, &std::free};
}

class CApiTest : public testing::Test {
 protected:
  static constexpr int64_t kElements[] = {300, 7, 5000};  // tensors; the first two are unit 0

  void SetUp() override {
    model_ = MakeModel();
    const sluice_options options = DefaultOptions();
    ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime_)) << Error();
  }
  void TearDown() override {
    sluice_runtime_destroy(runtime_);
    sluice_model_destroy(model_);
  }

  static sluice_model MakeModel() {
    sluice_model model = 0;
    EXPECT_EQ(SLUICE_OK, sluice_model_create(&model));
    uint32_t number = 0;
    for (const char* name : {"first", "second"})
      EXPECT_EQ(SLUICE_OK, sluice_model_add_unit(model, name, &number)) << Error();
    for (uint32_t t = 0; t < std::size(kElements); ++t) {
      const std::string name = "tensor" + std::to_string(t);
      EXPECT_EQ(SLUICE_OK,
                sluice_model_add_tensor(model, t / 2, name.c_str(), kElements[t], t % 2, &number))
          << Error();
    }
    return model;
  }

  static std::string Error() { return sluice_last_error(); }

  sluice_status Wait(sluice_ticket ticket) const {
    sluice_status status = SLUICE_PENDING;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime_, ticket, 100);
    return status;
  }

  // Every tensor of `value`, so that units can be acquired.
  void Load(float value) {
    for (uint32_t t = 0; t < std::size(kElements); ++t) {
      const std::vector<float> values(static_cast<size_t>(kElements[t]), value);
      sluice_ticket ticket = 0;
      ASSERT_EQ(SLUICE_OK, sluice_write(runtime_, t, SLUICE_MASTER, values.data(), SLUICE_F32,
                                        kElements[t], &ticket))
          << Error();
      ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    }
  }
  void PushGradients(float value) {
    for (uint32_t t = 0; t < std::size(kElements); ++t) {
      const std::vector<float> values(static_cast<size_t>(kElements[t]), value);
      sluice_ticket ticket = 0;
      ASSERT_EQ(SLUICE_OK, sluice_grad(runtime_, t, values.data(), kElements[t], nullptr, &ticket))
          << Error();
      ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    }
  }
  std::vector<float> Read(uint32_t tensor, int32_t field) {
    std::vector<float> values(static_cast<size_t>(kElements[tensor]));
    sluice_ticket ticket = 0;
    EXPECT_EQ(SLUICE_OK, sluice_read(runtime_, tensor, field, values.data(), SLUICE_F32,
                                     kElements[tensor], &ticket))
        << Error();
    EXPECT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    return values;
  }

  sluice_model model_ = 0;
  sluice_runtime runtime_ = 0;
};

// A call of one function with arguments that are all right but, perhaps, for the runtime.
struct RuntimeCall {
  const char* name;
  std::function<sluice_status(sluice_runtime)> call;
};

inline std::vector<RuntimeCall> EveryRuntimeCall() {
  static float data[300];
  static char json[8];
  static size_t needed;
  static double scale;
  static void* view;
  static sluice_ticket ticket;
  static sluice_group groups[2];
  static sluice_step_args args;
  static sluice_gradient gradient;
  static sluice_tensor_info info;
  static sluice_step_result result;
  static sluice_rates rates;
  static sluice_floor_terms terms;
  static sluice_save_args save = SLUICE_SAVE_INIT;
  static sluice_load_args load = SLUICE_LOAD_INIT;
  groups[0] = groups[1] = DefaultGroup();
  args = {sizeof(args), groups, 2, 0};
  gradient = {data, 300, 0, 0};
  info.struct_size = sizeof(info);
  result.struct_size = sizeof(result);
  rates.struct_size = sizeof(rates);
  terms.struct_size = sizeof(terms);
  load.directory = save.directory = "/dev/null";
  save.tag = "tag";
  save.id = 1;
  using R = sluice_runtime;
  return {
      {"wait", [](R r) { return sluice_wait(r, 1, 0); }},
      {"iteration_begin", [](R r) { return sluice_iteration_begin(r, 0, 0); }},
      {"iteration_end", [](R r) { return sluice_iteration_end(r); }},
      {"acquire", [](R r) { return sluice_acquire(r, 0, nullptr, &ticket); }},
      {"release", [](R r) { return sluice_release(r, 0, nullptr); }},
      {"unit_view", [](R r) { return sluice_unit_view(r, 0, &view); }},
      {"tensor_query", [](R r) { return sluice_tensor_query(r, 0, &info); }},
      {"tensor_set_step", [](R r) { return sluice_tensor_set_step(r, 0, 1); }},
      {"grad", [](R r) { return sluice_grad(r, 0, data, 300, nullptr, &ticket); }},
      {"grads", [](R r) { return sluice_grads(r, &gradient, 1, nullptr, &ticket); }},
      {"zero_grad", [](R r) { return sluice_zero_grad(r); }},
      {"grad_clear", [](R r) { return sluice_grad_clear(r, 0); }},
      {"step", [](R r) { return sluice_step(r, &args, &ticket); }},
      {"last_step", [](R r) { return sluice_last_step(r, &result); }},
      {"loss_scale", [](R r) { return sluice_loss_scale(r, &scale); }},
      {"drain", [](R r) { return sluice_drain(r, &ticket); }},
      {"read",
       [](R r) { return sluice_read(r, 0, SLUICE_MASTER, data, SLUICE_F32, 300, &ticket); }},
      {"write",
       [](R r) { return sluice_write(r, 0, SLUICE_MASTER, data, SLUICE_F32, 300, &ticket); }},
      {"save", [](R r) { return sluice_save(r, &save, &ticket); }},
      {"load", [](R r) { return sluice_load(r, &load, &ticket); }},
      {"report", [](R r) { return sluice_report(r, json, sizeof(json), &needed); }},
      {"floor", [](R r) { return sluice_floor(r, &rates, &terms); }},
      {"set_rates", [](R r) { return sluice_set_rates(r, &rates); }},
      {"reset_counters", [](R r) { return sluice_reset_counters(r); }},
      {"trace_write", [](R r) { return sluice_trace_write(r, "/dev/null"); }},
      {"trace_span", [](R r) { return sluice_trace_span(r, "span", 1, 2); }},
      {"runtime_destroy", [](R r) { return sluice_runtime_destroy(r); }},
  };
}

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_C_API_FIXTURE_H_
