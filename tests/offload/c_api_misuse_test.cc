// Whatever a caller of the C ABI gets wrong is an error with words, never a crash.

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <limits>
#include <thread>

#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

TEST_F(CApiTest, HandlesThatAreNoneAreErrors) {
  const sluice_runtime stale = runtime_;
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_));
  const sluice_options options = DefaultOptions();
  ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime_)) << Error();
  for (const sluice_runtime handle : {sluice_runtime{0}, stale, model_, ~sluice_runtime{0}}) {
    for (const RuntimeCall& call : EveryRuntimeCall()) {
      EXPECT_EQ(SLUICE_INVALID_ARGUMENT, call.call(handle)) << call.name << " of " << handle;
      EXPECT_THAT(Error(), HasSubstr("is not a runtime handle")) << call.name;
    }
  }
}

TEST_F(CApiTest, ModelHandlesThatAreNoneAreErrors) {
  uint32_t number = 0;
  size_t needed = 0;
  const sluice_options options = DefaultOptions();
  sluice_runtime runtime = 0;
  ASSERT_EQ(SLUICE_OK, sluice_model_destroy(model_));
  for (const sluice_model handle : {sluice_model{0}, model_, sluice_model{runtime_}}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_add_unit(handle, "unit", &number));
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_add_tensor(handle, 0, "t", 1, 0, &number));
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_plan(handle, &options, nullptr, 0, &needed));
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_create(handle, &options, &runtime));
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_destroy(handle));
    EXPECT_THAT(Error(), HasSubstr("is not a model handle"));
  }
}

TEST_F(CApiTest, ADestroyedHandleCantBeDestroyedAgain) {
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_destroy(runtime_));
  EXPECT_THAT(Error(), HasSubstr("or it was destroyed"));
}

TEST_F(CApiTest, NullIsNamed) {
  const sluice_options options = DefaultOptions();
  sluice_options paths = options;
  paths.nvme_path_count = 1;
  sluice_options path_missing = paths;
  const char* const no_path = nullptr;
  path_missing.nvme_paths = &no_path;
  uint32_t number = 0;
  sluice_ticket ticket = 0;
  float data[300] = {};
  sluice_rates rates{.struct_size = sizeof(rates)};
  sluice_floor_terms terms{.struct_size = sizeof(terms)};
  sluice_step_args no_groups{sizeof(no_groups), nullptr, 1, 0};
  const sluice_runtime r = runtime_;
  sluice_runtime made = 0;
  uint64_t checksum = 0;
  const std::pair<const char*, sluice_status> results[] = {
      {"model", sluice_model_create(nullptr)},
      {"name", sluice_model_add_unit(model_, nullptr, &number)},
      {"unit", sluice_model_add_unit(model_, "u", nullptr)},
      {"name", sluice_model_add_tensor(model_, 0, nullptr, 1, 0, &number)},
      {"tensor", sluice_model_add_tensor(model_, 0, "t", 1, 0, nullptr)},
      {"options", sluice_plan(model_, nullptr, nullptr, 0, nullptr)},
      {"json", sluice_plan(model_, &options, nullptr, 10, nullptr)},
      {"options", sluice_runtime_create(model_, nullptr, &made)},
      {"runtime", sluice_runtime_create(model_, &options, nullptr)},
      {"nvme_paths", sluice_runtime_create(model_, &paths, &made)},
      {"nvme_paths[i]", sluice_runtime_create(model_, &path_missing, &made)},
      {"ticket", sluice_acquire(r, 0, nullptr, nullptr)},
      {"dlpack", sluice_unit_view(r, 0, nullptr)},
      {"info", sluice_tensor_query(r, 0, nullptr)},
      {"data", sluice_grad(r, 0, nullptr, 300, nullptr, &ticket)},
      {"ticket", sluice_grad(r, 0, data, 300, nullptr, nullptr)},
      {"args", sluice_step(r, nullptr, &ticket)},
      {"args.groups", sluice_step(r, &no_groups, &ticket)},
      {"result", sluice_last_step(r, nullptr)},
      {"scale", sluice_loss_scale(r, nullptr)},
      {"ticket", sluice_drain(r, nullptr)},
      {"data", sluice_read(r, 0, SLUICE_MASTER, nullptr, SLUICE_F32, 300, &ticket)},
      {"ticket", sluice_read(r, 0, SLUICE_MASTER, data, SLUICE_F32, 300, nullptr)},
      {"data", sluice_write(r, 0, SLUICE_MASTER, nullptr, SLUICE_F32, 300, &ticket)},
      {"ticket", sluice_write(r, 0, SLUICE_MASTER, data, SLUICE_F32, 300, nullptr)},
      {"json", sluice_report(r, nullptr, 1, nullptr)},
      {"rates", sluice_floor(r, nullptr, &terms)},
      {"terms", sluice_floor(r, &rates, nullptr)},
      {"path", sluice_trace_write(r, nullptr)},
      {"name", sluice_trace_span(r, nullptr, 0, 1)},
      {"json", sluice_doctor(nullptr, nullptr, 1, nullptr)},
      {"data", sluice_checksum(nullptr, 1, 0, 0, &checksum)},
      {"checksum", sluice_checksum(data, sizeof(data), 0, 0, nullptr)},
  };
  for (const auto& [name, status] : results) EXPECT_EQ(SLUICE_INVALID_ARGUMENT, status) << name;
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_step(r, &no_groups, &ticket));
  EXPECT_THAT(Error(), HasSubstr("args.groups is NULL"));
}

TEST_F(CApiTest, StructSizesThatNoVersionHasAreRefused) {
  for (const size_t size : {size_t{0}, size_t{8}, sizeof(sluice_options) - 4,
                            sizeof(sluice_options) + 1, size_t{4096}, ~size_t{0}}) {
    sluice_options options = DefaultOptions();
    options.struct_size = size;
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_plan(model_, &options, nullptr, 0, nullptr)) << size;
    EXPECT_THAT(Error(), HasSubstr("options.struct_size is " + std::to_string(size)));
    sluice_tensor_info info{.struct_size = size};
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_tensor_query(runtime_, 0, &info)) << size;
    sluice_step_result result{.struct_size = size};
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_last_step(runtime_, &result)) << size;
    const sluice_step_args args{.struct_size = size};
    sluice_ticket ticket = 0;
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_step(runtime_, &args, &ticket)) << size;
    const sluice_rates rates{.struct_size = size};
    sluice_floor_terms terms{.struct_size = sizeof(terms)};
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_floor(runtime_, &rates, &terms)) << size;
  }
}

TEST_F(CApiTest, OptionsOutOfRangeAreNamed) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  struct Case {
    const char* name;
    void (*spoil)(sluice_options*);
  };
  const Case cases[] = {
      {"param_dtype", [](sluice_options* o) { o->param_dtype = 3; }},
      {"grad_dtype", [](sluice_options* o) { o->grad_dtype = -1; }},
      {"hbm_bytes", [](sluice_options* o) { o->hbm_bytes = -2; }},
      {"pinned_bytes", [](sluice_options* o) { o->pinned_bytes = INT64_MIN; }},
      {"nvme_bytes", [](sluice_options* o) { o->nvme_bytes = INT64_MAX; }},
      {"nvme_path_count", [](sluice_options* o) { o->nvme_path_count = 257; }},
      {"lowest_param_tier", [](sluice_options* o) { o->lowest_param_tier = 3; }},
      {"lowest_state_tier", [](sluice_options* o) { o->lowest_state_tier = -1; }},
      {"io_engine", [](sluice_options* o) { o->io_engine = 99; }},
      {"io_depth", [](sluice_options* o) { o->io_depth = 1025; }},
      {"io_batch", [](sluice_options* o) { o->io_batch = UINT32_MAX; }},
      {"workers", [](sluice_options* o) { o->workers = -1; }},
      {"chunk_elements", [](sluice_options* o) { o->chunk_elements = 4095; }},
      {"chunk_elements", [](sluice_options* o) { o->chunk_elements = -4096; }},
      {"resident_elements_max", [](sluice_options* o) { o->resident_elements_max = -2; }},
      {"static_loss_scale", [](sluice_options* o) { o->static_loss_scale = kNan; }},
      {"initial_scale_power", [](sluice_options* o) { o->initial_scale_power = 127; }},
      {"hysteresis", [](sluice_options* o) { o->hysteresis = 0; }},
      {"loss_scale_window", [](sluice_options* o) { o->loss_scale_window = 0; }},
      {"min_loss_scale", [](sluice_options* o) { o->min_loss_scale = -1; }},
      {"link_bytes_per_second", [](sluice_options* o) { o->link_bytes_per_second = -1; }},
      {"trace_spans_max", [](sluice_options* o) { o->trace_spans_max = UINT64_MAX; }},
  };
  for (const Case& c : cases) {
    sluice_options options = DefaultOptions();
    c.spoil(&options);
    sluice_runtime runtime = 0;
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_create(model_, &options, &runtime)) << c.name;
    EXPECT_THAT(Error(), HasSubstr(c.name));
    EXPECT_EQ(0u, runtime);
  }
}

TEST_F(CApiTest, ArgumentsOutOfRangeAreNamed) {
  uint32_t number = 0;
  sluice_ticket ticket = 0;
  float data[300] = {};
  void* view = nullptr;
  sluice_tensor_info info{.struct_size = sizeof(info)};
  const sluice_runtime r = runtime_;
  struct Case {
    const char* words;
    std::function<sluice_status()> call;
  };
  const Case cases[] = {
      {"unit 2 does not", [&] { return sluice_model_keep_in_hbm(model_, 2); }},
      {"unit 2 does not", [&] { return sluice_model_add_tensor(model_, 2, "t", 1, 0, &number); }},
      {"has 0 elements", [&] { return sluice_model_add_tensor(model_, 0, "t", 0, 0, &number); }},
      {"key is 16", [&] { return sluice_iteration_begin(r, 16, 0); }},
      {"flags is 2", [&] { return sluice_iteration_begin(r, 0, 2); }},
      {"unit 2 does not", [&] { return sluice_acquire(r, 2, nullptr, &ticket); }},
      {"unit 9 does not", [&] { return sluice_release(r, 9, nullptr); }},
      {"unit 4294967295", [&] { return sluice_unit_view(r, UINT32_MAX, &view); }},
      {"tensor 3 does not", [&] { return sluice_tensor_query(r, 3, &info); }},
      {"tensor 3 does not", [&] { return sluice_tensor_set_step(r, 3, 0); }},
      {"step is -1", [&] { return sluice_tensor_set_step(r, 0, -1); }},
      {"tensor 3 does not", [&] { return sluice_grad(r, 3, data, 300, nullptr, &ticket); }},
      {"300 elements, not 299", [&] { return sluice_grad(r, 0, data, 299, nullptr, &ticket); }},
      {"300 elements, not -1",
       [&] { return sluice_read(r, 0, SLUICE_MASTER, data, SLUICE_F32, -1, &ticket); }},
      {"field is 5", [&] { return sluice_read(r, 0, 5, data, SLUICE_F32, 300, &ticket); }},
      {"dtype is 3", [&] { return sluice_read(r, 0, SLUICE_MASTER, data, 3, 300, &ticket); }},
      {"can't be written",
       [&] { return sluice_write(r, 0, SLUICE_PARAM, data, SLUICE_F32, 300, &ticket); }},
      {"tensor 3 does not", [&] { return sluice_grad_clear(r, 3); }},
      {"from 2 to 1 ns", [&] { return sluice_trace_span(r, "span", 2, 1); }},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, c.call()) << c.words;
    EXPECT_THAT(Error(), HasSubstr(c.words));
  }
}

TEST_F(CApiTest, StepsThatMakeNoSenseAreRefused) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  sluice_ticket ticket = 0;
  const auto step = [&](void (*spoil)(sluice_group*), double clip_norm, uint32_t count) {
    sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
    spoil(&groups[1]);
    const sluice_step_args args = {sizeof(args), groups, count, clip_norm};
    return sluice_step(runtime_, &args, &ticket);
  };
  const auto keep = [](sluice_group*) {};
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, step(keep, -1, 2));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, step(keep, kInf, 2));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, step(keep, 0, 0));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, step(keep, 0, 1));
  EXPECT_THAT(Error(), HasSubstr("tensor 'tensor1' is in group 1, but the step has 1 groups"));
  void (*const spoilers[])(sluice_group*) = {
      [](sluice_group* g) { g->lr = -1; },          [](sluice_group* g) { g->lr = kInf; },
      [](sluice_group* g) { g->beta1 = 1; },        [](sluice_group* g) { g->beta2 = -0.1; },
      [](sluice_group* g) { g->eps = -1e-8; },      [](sluice_group* g) { g->weight_decay = kInf; },
      [](sluice_group* g) { g->struct_size += 8; },
  };
  for (const auto& spoil : spoilers) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, step(spoil, 0, 2));
    EXPECT_THAT(Error(), HasSubstr("group 1"));
  }
}

TEST_F(CApiTest, ATicketIsGoodForOneRuntimeAndOnce) {
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_drain(runtime_, &ticket));
  ASSERT_EQ(SLUICE_OK, Wait(ticket));
  EXPECT_EQ(SLUICE_NOT_OPEN, sluice_wait(runtime_, ticket, 0));
  EXPECT_THAT(Error(), HasSubstr("is not open"));
  EXPECT_EQ(SLUICE_NOT_OPEN, sluice_wait(runtime_, 0, 0));
  EXPECT_EQ(SLUICE_NOT_OPEN, sluice_wait(runtime_, ~sluice_ticket{0}, 0));
}

TEST_F(CApiTest, WhatIsNotHeldCantBeReleasedOrViewed) {
  Load(1);
  void* view = nullptr;
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, sluice_release(runtime_, 0, nullptr));
  EXPECT_THAT(Error(), HasSubstr("unit 'first' is not acquired"));
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, sluice_unit_view(runtime_, 0, &view));
}

TEST_F(CApiTest, WhatWasNeverWrittenCantBeAcquiredReadOrTaught) {
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 1, nullptr, &ticket));
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, Wait(ticket));
  EXPECT_THAT(Error(), HasSubstr("tensor 'tensor2' of unit"));
  float data[300];
  ASSERT_EQ(SLUICE_OK, sluice_read(runtime_, 0, SLUICE_EXP_AVG, data, SLUICE_F32, 300, &ticket));
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, Wait(ticket));
  ASSERT_EQ(SLUICE_OK, sluice_grad(runtime_, 0, data, 300, nullptr, &ticket));
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, Wait(ticket));
  EXPECT_THAT(Error(), HasSubstr("has no values yet"));
  ASSERT_EQ(SLUICE_OK, sluice_read(runtime_, 0, SLUICE_GRAD, data, SLUICE_F32, 300, &ticket));
  EXPECT_EQ(SLUICE_NOT_FOUND, Wait(ticket));
}

// As in a worker process of a DataLoader: everything fails, nothing hangs, nothing is destroyed.
TEST_F(CApiTest, AForkedChildCanUseNothingOfItsParents) {
  Load(1);
  std::atomic<bool> stop{false};
  std::thread busy([&] {  // holds the tables' locks now and then
    while (!stop) sluice_reset_counters(runtime_);
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      int wrong = 0;
      for (const RuntimeCall& call : EveryRuntimeCall())
        wrong += call.call(runtime_) == SLUICE_FAILED_PRECONDITION ? 0 : 1;
      uint32_t number = 0;
      wrong += sluice_model_add_unit(model_, "u", &number) == SLUICE_FAILED_PRECONDITION ? 0 : 1;
      wrong += sluice_model_destroy(model_) == SLUICE_FAILED_PRECONDITION ? 0 : 1;
      wrong += Error().find("a forked child can't use it") == std::string::npos ? 1 : 0;
      _exit(wrong);
    }
    int status = 0;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  }
  stop = true;
  busy.join();
  EXPECT_EQ(Read(0, SLUICE_MASTER), std::vector<float>(300, 1.0f));
}

}  // namespace
}  // namespace sluice
