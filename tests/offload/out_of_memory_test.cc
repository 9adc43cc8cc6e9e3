// Every allocation that a call of the C ABI makes on its caller's thread fails, once and from then
// on. The call says so, or copes; it has done nothing, and can be made again; and what is trained
// by such calls has the same bits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/dlpack.h"
#include "offload/sluice.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"
#include "tests/offload/failing_new.h"

namespace sluice {
namespace {

using testing::Failing;
using testing::FailingNew;

// Of this process. Threads that look something up have one more for a moment, so the least of many
// counts is taken.
size_t OpenFiles() {
  size_t least = SIZE_MAX;
  for (int i = 0; i < 20; ++i) {
    const std::filesystem::directory_iterator entries("/proc/self/fd");
    least = std::min(least, static_cast<size_t>(std::distance(begin(entries), end(entries))));
  }
  return least;
}

// Makes calls again and again, each time with another allocation that fails, until none is left.
class Caller {
 public:
  explicit Caller(std::optional<Failing> failing) : failing_(failing) {}

  // A call that copes with a failure is made again after `undo`; without it, another of that name
  // goes on where this one was.
  void Call(const char* name, const std::function<sluice_status()>& call,
            const std::function<void()>& undo = nullptr) {
    int64_t& nth = next_[name];
    for (int64_t failures = 0; failures < kMost; ++failures) {
      bool failed = false;
      const sluice_status status = Once(call, nth, &failed);
      if (status == SLUICE_OK) {
        nth = failed ? nth + 1 : 0;
        if (!failed || undo == nullptr) return;
        undo();
        continue;
      }
      ASSERT_TRUE(failed) << name << " " << nth << ": " << sluice_last_error();
      ASSERT_EQ(SLUICE_RESOURCE_EXHAUSTED, status) << name << " " << nth << sluice_last_error();
      ++nth;
    }
    FAIL() << name << " takes more than " << kMost << " allocations";
  }
  void Wait(sluice_runtime runtime, sluice_ticket ticket) {
    int64_t& nth = next_["wait"];
    for (sluice_status status = SLUICE_PENDING; status != SLUICE_OK;) {
      bool failed = false;
      status = Once([&] { return sluice_wait(runtime, ticket, 100); }, nth, &failed);
      ASSERT_TRUE(status == SLUICE_OK || status == SLUICE_PENDING) << sluice_last_error();
      nth = failed ? nth + 1 : 0;
    }
  }
  int64_t failures() const { return failures_; }

 private:
  static constexpr int64_t kMost = 100'000;

  sluice_status Once(const std::function<sluice_status()>& call, int64_t nth, bool* failed) {
    if (!failing_) return call();
    const FailingNew fails(nth, *failing_);
    const sluice_status status = call();
    *failed = fails.happened();
    failures_ += *failed;
    return status;
  }

  const std::optional<Failing> failing_;
  std::map<std::string, int64_t> next_;
  int64_t failures_ = 0;
};

// Calls that write JSON need memory to take apart what they have made, and end the process if there
// is none: nlohmann's destructors allocate.
void CallWithMemory(const std::function<sluice_status()>& call) {
  ASSERT_EQ(SLUICE_OK, call()) << sluice_last_error();
}

// What is trained: units that come and go, one with many tensors, one that stays; a frozen one.
constexpr int kSteps = 3;
constexpr int64_t kElements[] = {300, 7, 5000, 9000, 4096, 64};
constexpr uint32_t kUnitOf[] = {0, 0, 1, 2, 2, 3};
constexpr uint32_t kFrozen = 5;
constexpr uint32_t kUnits = 4;

class OutOfMemoryTest : public ::testing::TestWithParam<Failing> {
 protected:
  struct Result {
    std::vector<std::vector<float>> values;  // by tensor and field
    std::map<std::string, int64_t> counts;
    int64_t failures = 0;
  };

  void Train(std::optional<Failing> failing, Result* result);
  void Describe(Caller* caller, sluice_model* model);
  void Iterate(Caller* caller, sluice_runtime runtime, int step);
  void LookInside(Caller* caller, sluice_runtime runtime);

  TempDir dir_;
};

void OutOfMemoryTest::Describe(Caller* caller, sluice_model* model) {
  caller->Call("model_create", [&] { return sluice_model_create(model); });
  uint32_t number = 0;
  for (uint32_t u = 0; u < kUnits; ++u) {
    const std::string name = "a unit with a name that takes memory, " + std::to_string(u);
    caller->Call("add_unit", [&] { return sluice_model_add_unit(*model, name.c_str(), &number); });
    ASSERT_EQ(u, number) << "one that could not be added was";
  }
  for (uint32_t t = 0; t < std::size(kElements); ++t) {
    const std::string name = "a tensor with a name that takes memory, " + std::to_string(t);
    caller->Call("add_tensor", [&] {
      return sluice_model_add_tensor(*model, kUnitOf[t], name.c_str(), kElements[t], 0, &number);
    });
    ASSERT_EQ(t, number);
  }
  caller->Call("set_keep",
               [&] { return sluice_model_set_keep(*model, kFrozen, SLUICE_KEEP_PARAM); });
  caller->Call("keep_in_hbm", [&] { return sluice_model_keep_in_hbm(*model, 3); });
  caller->Call("set_unit_types",
               [&] { return sluice_model_set_unit_types(*model, 1, SLUICE_BF16, SLUICE_BF16); });
}

// Forward and backward, on several streams, with views and gradients; and the step.
void OutOfMemoryTest::Iterate(Caller* caller, sluice_runtime runtime, int step) {
  const auto stream = [](size_t number) { return reinterpret_cast<void*>(number); };
  caller->Call("iteration_begin",
               [&] { return sluice_iteration_begin(runtime, 0, SLUICE_ITERATION_BOUNDARY); });
  std::vector<std::vector<float>> grads;
  for (uint32_t i = 0; i < 2 * kUnits; ++i) {
    const uint32_t unit = i < kUnits ? i : 2 * kUnits - 1 - i;
    sluice_ticket ticket = 0;
    const size_t streams = i == kUnits ? 4 : 1;  // who has acquired it, all at a time
    for (size_t s = 0; s < streams; ++s) {
      caller->Call("acquire", [&] { return sluice_acquire(runtime, unit, stream(s), &ticket); });
      caller->Wait(runtime, ticket);
    }
    std::vector<DlManagedTensor*> views(2);
    for (DlManagedTensor*& view : views) {
      caller->Call("unit_view", [&] {
        return sluice_unit_view(runtime, unit, reinterpret_cast<void**>(&view));
      });
    }
    for (DlManagedTensor* view : views) view->deleter(view);
    if (i >= kUnits) {
      std::vector<sluice_gradient> given;
      for (uint32_t t = 0; t < std::size(kElements); ++t) {
        if (kUnitOf[t] != unit || t == kFrozen) continue;
        // Where the type has two bytes these are other numbers, but the same each time.
        grads.emplace_back(static_cast<size_t>(kElements[t]),
                           0.125F * static_cast<float>(step + 1));
        given.push_back({grads.back().data(), kElements[t], t, 0});
      }
      if (given.size() == 1) {
        caller->Call("grad", [&] {
          return sluice_grad(runtime, given[0].tensor, given[0].data, given[0].elements, stream(0),
                             &ticket);
        });
        caller->Wait(runtime, ticket);
      } else if (!given.empty()) {
        caller->Call("grads", [&] {
          return sluice_grads(runtime, given.data(), given.size(), stream(0), &ticket);
        });
        caller->Wait(runtime, ticket);
      }
    }
    // The last of several streams releases for those that never do.
    for (size_t s = 0; s < streams; ++s)
      caller->Call("release", [&] { return sluice_release(runtime, unit, stream(0)); });
  }
  caller->Call("iteration_end", [&] { return sluice_iteration_end(runtime); });
  if (step == 1) {  // another gradient of one, from the start
    caller->Call("grad_clear", [&] { return sluice_grad_clear(runtime, 0); });
  }
  const sluice_group group = DefaultGroup();
  const sluice_step_args args = {sizeof(args), &group, 1, 1.0};
  sluice_ticket ticket = 0;
  caller->Call("step", [&] { return sluice_step(runtime, &args, &ticket); });
  caller->Wait(runtime, ticket);
}

void OutOfMemoryTest::LookInside(Caller* caller, sluice_runtime runtime) {
  sluice_step_result last = {sizeof(last)};
  double scale = 0;
  caller->Call("last_step", [&] { return sluice_last_step(runtime, &last); });
  EXPECT_EQ(1, last.applied);
  caller->Call("loss_scale", [&] { return sluice_loss_scale(runtime, &scale); });
  sluice_tensor_info info = {sizeof(info)};
  caller->Call("tensor_query", [&] { return sluice_tensor_query(runtime, 0, &info); });
  caller->Call("tensor_set_step", [&] { return sluice_tensor_set_step(runtime, 0, info.step); });
  const sluice_rates rates = {sizeof(rates)};
  sluice_floor_terms terms = {sizeof(terms)};
  caller->Call("floor", [&] { return sluice_floor(runtime, &rates, &terms); });
  caller->Call("set_rates", [&] { return sluice_set_rates(runtime, &rates); });
  caller->Call("trace_span", [&] {
    return sluice_trace_span(runtime, "a span with a name that takes memory", 1, 2);
  });
  CallWithMemory([&] { return sluice_trace_write(runtime, "/dev/null"); });
  sluice_ticket ticket = 0;
  const std::vector<float> values(static_cast<size_t>(kElements[3]), 0.5F);
  caller->Call("write", [&] {
    return sluice_write(runtime, 3, SLUICE_GRAD, values.data(), SLUICE_F32, kElements[3], &ticket);
  });
  caller->Wait(runtime, ticket);
  caller->Call("zero_grad", [&] { return sluice_zero_grad(runtime); });
  caller->Call("drain", [&] { return sluice_drain(runtime, &ticket); });
  caller->Wait(runtime, ticket);
  size_t needed = 0;
  char json[64];
  CallWithMemory([&] { return sluice_doctor(dir_.path().c_str(), json, sizeof(json), &needed); });
  uint64_t checksum = 0;
  caller->Call("checksum", [&] {
    return sluice_checksum(values.data(), values.size() * sizeof(float), 1, 2, &checksum);
  });
}

void OutOfMemoryTest::Train(std::optional<Failing> failing, Result* result) {
  Caller caller(failing);
  sluice_model model = 0;
  Describe(&caller, &model);
  const char* const paths[] = {dir_.path().c_str()};
  sluice_options options = DefaultOptions();
  options.nvme_paths = paths;
  options.nvme_path_count = 1;
  options.hbm_bytes = 96 << 10;  // not for all of it
  options.chunk_elements = 4096;
  size_t needed = 0;
  CallWithMemory([&] { return sluice_plan(model, &options, nullptr, 0, &needed); });
  const size_t files = OpenFiles();
  sluice_runtime runtime = 0;
  const auto create = [&] {
    const sluice_status status = sluice_runtime_create(model, &options, &runtime);
    FailingNew::Stop();
    EXPECT_TRUE(status == SLUICE_OK || files == OpenFiles()) << "left open";
    return status;
  };
  caller.Call("runtime_create", create,
              [&] { EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime)); });
  for (uint32_t t = 0; t < std::size(kElements); ++t) {
    const std::vector<float> values(static_cast<size_t>(kElements[t]),
                                    1.0F + static_cast<float>(t));
    sluice_ticket ticket = 0;
    caller.Call("write", [&] {
      return sluice_write(runtime, t, SLUICE_MASTER, values.data(), SLUICE_F32, kElements[t],
                          &ticket);
    });
    caller.Wait(runtime, ticket);
  }
  caller.Call("reset_counters", [&] { return sluice_reset_counters(runtime); });
  for (int step = 0; step < kSteps && !HasFatalFailure(); ++step) Iterate(&caller, runtime, step);
  std::string report(1 << 16, '\0');
  CallWithMemory([&] { return sluice_report(runtime, report.data(), report.size(), &needed); });
  ASSERT_LE(needed, report.size());
  const auto parsed = nlohmann::json::parse(report.c_str())["counters"];
  for (const char* name : {"acquires", "steps", "trace_departures", "steps_skipped"})
    result->counts[name] = parsed.value(name, int64_t{-1});
  LookInside(&caller, runtime);
  for (uint32_t t = 0; t < std::size(kElements); ++t) {
    for (const int32_t field : {SLUICE_PARAM, SLUICE_MASTER, SLUICE_EXP_AVG, SLUICE_EXP_AVG_SQ}) {
      if (t == kFrozen && field > SLUICE_MASTER) continue;
      std::vector<float>& values = result->values.emplace_back(static_cast<size_t>(kElements[t]));
      sluice_ticket ticket = 0;
      caller.Call("read", [&] {
        return sluice_read(runtime, t, field, values.data(), SLUICE_F32, kElements[t], &ticket);
      });
      caller.Wait(runtime, ticket);
    }
  }
  caller.Call("runtime_destroy", [&] { return sluice_runtime_destroy(runtime); });
  caller.Call("model_destroy", [&] { return sluice_model_destroy(model); });
  result->failures = caller.failures();
}

TEST_P(OutOfMemoryTest, ACallHasDoneNothingAndCanBeMadeAgain) {
  Result expected, result;
  Train(std::nullopt, &expected);
  ASSERT_FALSE(HasFatalFailure());
  Train(GetParam(), &result);
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_EQ(expected.counts, result.counts);
  EXPECT_EQ(expected.counts["acquires"], kSteps * (2 * int{kUnits} + 3));
  ASSERT_EQ(expected.values.size(), result.values.size());
  for (size_t i = 0; i < expected.values.size(); ++i)
    EXPECT_EQ(expected.values[i], result.values[i]);
  EXPECT_GT(result.failures, 500);
}

// Errors of arguments, whose words need memory: the code is right, or it is that of memory, and
// there are words.
TEST_P(OutOfMemoryTest, ErrorsStayErrors) {
  for (const RuntimeCall& call : EveryRuntimeCall()) {  // with a handle of none
    for (int64_t nth = 0;; ++nth) {
      sluice_status status = SLUICE_OK;
      bool failed = false;
      {
        const FailingNew fails(nth, GetParam());
        status = call.call(12345);
        failed = fails.happened();
      }
      EXPECT_STRNE("", sluice_last_error()) << call.name;
      if (!failed) {
        EXPECT_EQ(SLUICE_INVALID_ARGUMENT, status) << call.name;
        break;
      }
      const bool waits = std::string(call.name) == "wait";
      EXPECT_TRUE(status == SLUICE_INVALID_ARGUMENT || status == SLUICE_RESOURCE_EXHAUSTED ||
                  (waits && status == SLUICE_PENDING))
          << call.name << " " << status;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Failures, OutOfMemoryTest,
                         ::testing::Values(Failing::kOnce, Failing::kFromThenOn));

}  // namespace
}  // namespace sluice
