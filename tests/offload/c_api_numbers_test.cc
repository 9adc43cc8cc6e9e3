// Every number of every struct, at every edge: refused by name, or it works; nothing overflows.

#include <gmock/gmock.h>

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <limits>

#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

// A field of a struct, and how wide it is.
struct Field {
  const char* name;
  size_t offset;
  char kind;  // i: int32, u: uint32, l: int64, U: uint64, d: double
};
#define OPTION(field, kind) \
  { #field, offsetof(sluice_options, field), kind }
constexpr Field kOptions[] = {
    OPTION(param_dtype, 'i'),
    OPTION(grad_dtype, 'i'),
    OPTION(hbm_bytes, 'l'),
    OPTION(pinned_bytes, 'l'),
    OPTION(nvme_bytes, 'l'),
    {"nvme_path", offsetof(sluice_options, nvme_path_count), 'u'},
    OPTION(lowest_param_tier, 'i'),
    OPTION(lowest_state_tier, 'i'),
    OPTION(io_engine, 'i'),
    OPTION(io_depth, 'u'),
    OPTION(io_batch, 'u'),
    OPTION(workers, 'i'),
    OPTION(chunk_elements, 'l'),
    OPTION(resident_elements_max, 'l'),
    OPTION(static_loss_scale, 'd'),
    OPTION(initial_scale_power, 'i'),
    OPTION(hysteresis, 'i'),
    OPTION(consecutive_hysteresis, 'i'),
    OPTION(loss_scale_window, 'l'),
    OPTION(min_loss_scale, 'd'),
    OPTION(link_bytes_per_second, 'd'),
    OPTION(overlap, 'i'),
    OPTION(trace_spans_max, 'U'),
    OPTION(device, 'i'),
    OPTION(device_index, 'i'),
    OPTION(rank, 'u'),
    OPTION(ranks, 'u'),
    OPTION(zero_stage, 'i'),
    OPTION(rank_timeout_ms, 'i'),
    OPTION(comm_groups, 'u'),
    OPTION(reduction, 'l'),
};
#undef OPTION
#define GROUP(field, kind) \
  { #field, offsetof(sluice_group, field), kind }
constexpr Field kGroup[] = {
    GROUP(lr, 'd'),           GROUP(beta1, 'd'),    GROUP(beta2, 'd'),          GROUP(eps, 'd'),
    GROUP(weight_decay, 'd'), GROUP(l2_decay, 'i'), GROUP(bias_correction, 'i')};
#undef GROUP
#define RATE(field, kind) \
  { #field, offsetof(sluice_rates, field), kind }
constexpr Field kRates[] = {RATE(forward_seconds, 'd'), RATE(backward_seconds, 'd'),
                            RATE(nvme_bytes, 'd'),      RATE(update_elements, 'd'),
                            RATE(checksum_bytes, 'd'),  RATE(copy_bytes, 'd'),
                            RATE(shared_cores, 'i')};
#undef RATE

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kReals[] = {
    0,           -0.0,    1,        -1,   0.5,   2,
    1 - 0x1p-53, 1e-320,  1e-40,    1e15, 1e30,  1e39,
    1e300,       DBL_MAX, -DBL_MAX, kInf, -kInf, std::numeric_limits<double>::quiet_NaN()};
constexpr int64_t kIntegers[] = {0,          1,
                                 2,          3,
                                 4096,       -1,
                                 -2,         INT32_MAX,
                                 INT32_MIN,  int64_t{1} << 31,
                                 UINT32_MAX, (int64_t{1} << 32) + 1,
                                 INT64_MAX,  INT64_MIN};

// The edges of `field`, put into `object` one after the other; `use` is called for each.
template <typename Struct, typename Use>
void ForEveryEdge(const Field& field, const Struct& object, Use use) {
  const auto put = [&](auto value) {
    Struct changed = object;
    std::memcpy(reinterpret_cast<char*>(&changed) + field.offset, &value, sizeof(value));
    SCOPED_TRACE(testing::Message() << field.name << " = " << value);
    use(changed);
  };
  if (field.kind == 'd') {
    for (const double value : kReals) put(value);
    return;
  }
  for (const int64_t value : kIntegers) {
    if (field.kind == 'l') put(value);
    if (field.kind == 'U') put(static_cast<uint64_t>(value));
    if (field.kind == 'i' && value >= INT32_MIN && value <= INT32_MAX)
      put(static_cast<int32_t>(value));
    if (field.kind == 'u' && value >= 0 && value <= UINT32_MAX) put(static_cast<uint32_t>(value));
  }
}

class NumbersTest : public CApiTest {
 protected:
  // Whether it works; if not, the error names the field.
  static bool Works(sluice_status status, const char* name) {
    if (status == SLUICE_OK) return true;
    EXPECT_TRUE(status == SLUICE_INVALID_ARGUMENT || status == SLUICE_RESOURCE_EXHAUSTED ||
                status == SLUICE_UNAVAILABLE || status == SLUICE_PERMISSION_DENIED)
        << status;
    EXPECT_TRUE(status != SLUICE_INVALID_ARGUMENT || Error().find(name) != std::string::npos)
        << Error();
    return false;
  }

  // Masters, after a step with `group` for all tensors.
  void Step(const sluice_group& group, const char* name) {
    Load(1);
    PushGradients(0.5f);
    const sluice_group groups[2] = {group, group};
    const sluice_step_args args{.struct_size = sizeof(args), .groups = groups, .group_count = 2};
    sluice_ticket ticket = 0;
    if (!Works(sluice_step(runtime_, &args, &ticket), name)) {
      ASSERT_EQ(SLUICE_OK, sluice_zero_grad(runtime_));
      return;
    }
    ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    for (const float value : Read(0, SLUICE_MASTER)) ASSERT_TRUE(std::isfinite(value)) << value;
  }
};

TEST_F(NumbersTest, OptionsAreRefusedByNameOrWork) {
  for (const Field& field : kOptions) {
    ForEveryEdge(field, DefaultOptions(), [&](const sluice_options& options) {
      size_t needed = 0;
      const bool planned = Works(sluice_plan(model_, &options, nullptr, 0, &needed), field.name);
      const bool many_threads = options.workers > 4 || options.trace_spans_max > 1 << 20;
      if (!planned || many_threads) return;
      sluice_runtime runtime = 0;
      if (!Works(sluice_runtime_create(model_, &options, &runtime), field.name)) return;
      double scale = 0;
      EXPECT_EQ(SLUICE_OK, sluice_loss_scale(runtime, &scale));
      EXPECT_GT(static_cast<float>(scale), 0);
      EXPECT_TRUE(std::isfinite(static_cast<float>(scale))) << scale;
      EXPECT_TRUE(std::isfinite(static_cast<float>(1 / scale))) << scale;
      EXPECT_EQ(SLUICE_OK, sluice_report(runtime, nullptr, 0, &needed));
      EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime));
    });
  }
}

// The table above has every number there is.
TEST_F(NumbersTest, NoOptionIsLeftOut) {
  size_t bytes = sizeof(size_t) + 6 * sizeof(void*);  // struct_size and what points
  for (const Field& field : kOptions) bytes += field.kind == 'i' || field.kind == 'u' ? 4 : 8;
  EXPECT_LE(sizeof(sluice_options) - bytes, 16u) << "room between fields, or a new one";
}

TEST_F(NumbersTest, DynamicLossScalesAreFiniteFloats) {
  sluice_options dynamic = DefaultOptions();
  dynamic.static_loss_scale = 0;
  for (const int32_t power : {0, 1, 24, 126}) {
    dynamic.initial_scale_power = power;
    sluice_runtime runtime = 0;
    ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &dynamic, &runtime)) << Error();
    double scale = 0;
    EXPECT_EQ(SLUICE_OK, sluice_loss_scale(runtime, &scale));
    EXPECT_EQ(scale, std::ldexp(1.0, power));
    EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime));
  }
}

TEST_F(NumbersTest, GroupsAreRefusedByNameOrWork) {
  for (const Field& field : kGroup) {
    ForEveryEdge(field, DefaultGroup(),
                 [&](const sluice_group& group) { Step(group, field.name); });
  }
}

TEST_F(NumbersTest, ClipNormIsRefusedByNameOrWorks) {
  Load(1);
  for (const double clip_norm : kReals) {
    PushGradients(0.5f);
    const sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
    const sluice_step_args args{
        .struct_size = sizeof(args), .groups = groups, .group_count = 2, .clip_norm = clip_norm};
    sluice_ticket ticket = 0;
    if (!Works(sluice_step(runtime_, &args, &ticket), "clip_norm")) {
      ASSERT_EQ(SLUICE_OK, sluice_zero_grad(runtime_));
      continue;
    }
    ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    for (const float value : Read(0, SLUICE_MASTER)) ASSERT_TRUE(std::isfinite(value)) << clip_norm;
  }
}

TEST_F(NumbersTest, RatesAreRefusedByNameOrWork) {
  sluice_rates like{.struct_size = sizeof(like),
                    .forward_seconds = 1,
                    .backward_seconds = 1,
                    .nvme_bytes = 1e9,
                    .update_elements = 1e9,
                    .checksum_bytes = 1e9,
                    .copy_bytes = 1e9,
                    .shared_cores = 1};
  for (const Field& field : kRates) {
    ForEveryEdge(field, like, [&](const sluice_rates& rates) {
      sluice_floor_terms terms{.struct_size = sizeof(terms)};
      if (Works(sluice_floor(runtime_, &rates, &terms), field.name)) {
        EXPECT_FALSE(std::isnan(terms.total));
      }
      Works(sluice_set_rates(runtime_, &rates), field.name);
    });
  }
}

TEST_F(NumbersTest, NumbersOfCallsAreRefusedOrWork) {
  Load(1);
  for (const int64_t value : kIntegers) {
    SCOPED_TRACE(value);
    uint32_t number = 0;
    const sluice_model model = MakeModel();
    const sluice_status added = sluice_model_add_tensor(model, 0, "t", value, 0, &number);
    EXPECT_EQ(added == SLUICE_OK, value > 0);
    if (added == SLUICE_OK) {
      const sluice_options options = DefaultOptions();
      Works(sluice_plan(model, &options, nullptr, 0, nullptr), "tensor 't'");
    }
    EXPECT_EQ(SLUICE_OK, sluice_model_destroy(model));
    if (value >= 0 && value <= UINT32_MAX) {
      const auto as_u32 = static_cast<uint32_t>(value);
      const sluice_model grouped = MakeModel();
      Works(sluice_model_add_tensor(grouped, 0, "t", 1, as_u32, &number), "group");
      EXPECT_EQ(SLUICE_OK, sluice_model_destroy(grouped));
      Works(sluice_iteration_begin(runtime_, as_u32, 0), "key");
      Works(sluice_iteration_begin(runtime_, 0, as_u32), "flags");
      EXPECT_EQ(SLUICE_OK, sluice_iteration_end(runtime_));
    }
    Works(sluice_trace_span(runtime_, "span", value, value), "span");
    if (Works(sluice_tensor_set_step(runtime_, 0, value), "step")) Step(DefaultGroup(), "");
  }
  sluice_ticket ticket = 0;
  for (const int32_t timeout : {INT32_MIN, -1, 0, 1, INT32_MAX}) {
    ASSERT_EQ(SLUICE_OK, sluice_drain(runtime_, &ticket));
    sluice_status status = SLUICE_PENDING;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime_, ticket, timeout);
    EXPECT_EQ(SLUICE_OK, status);
  }
}

// Names and paths that are no UTF-8 come back in JSON that is.
TEST_F(NumbersTest, ReportsOfAnyNamesCanBeRead) {
  std::string text(1 << 16, '\0');
  ASSERT_EQ(SLUICE_OK, sluice_doctor("/no/such/\xE9\xFF", text.data(), text.size(), nullptr));
  EXPECT_EQ(nlohmann::json::parse(text.c_str())["path"]["path"], "/no/such/\\xE9\\xFF");

  const TempDir dir;
  const std::string path = dir.path() + "/\xE9";
  ASSERT_TRUE(std::filesystem::create_directory(path));
  sluice_model model = 0;
  uint32_t number = 0;
  ASSERT_EQ(SLUICE_OK, sluice_model_create(&model));
  ASSERT_EQ(SLUICE_OK, sluice_model_add_unit(model, "unit \xE9", &number));
  ASSERT_EQ(SLUICE_OK, sluice_model_add_tensor(model, 0, "tensor \xFF", 200'000, 0, &number));
  sluice_options options = DefaultOptions();
  options.pinned_bytes = 3'500'000;
  options.trace_spans_max = 100;
  const char* const paths[] = {path.c_str()};
  options.nvme_paths = paths;
  options.nvme_path_count = 1;
  sluice_runtime runtime = 0;
  ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model, &options, &runtime)) << Error();
  ASSERT_EQ(SLUICE_OK, sluice_report(runtime, text.data(), text.size(), nullptr));
  const auto report = nlohmann::json::parse(text.c_str());
  EXPECT_THAT(report["paths"][0].get<std::string>(), HasSubstr(dir.path() + "/\\xE9: "));
  ASSERT_EQ(SLUICE_OK, sluice_trace_span(runtime, "span \xE9", 1, 2));
  const std::string trace = dir.path() + "/trace.json";
  ASSERT_EQ(SLUICE_OK, sluice_trace_write(runtime, trace.c_str())) << Error();
  std::ifstream file(trace);
  EXPECT_FALSE(nlohmann::json::parse(file, nullptr, false).is_discarded());
  EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime));
  EXPECT_EQ(SLUICE_OK, sluice_model_destroy(model));
}

}  // namespace
}  // namespace sluice
