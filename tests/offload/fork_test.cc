// A child of fork makes a runtime of its own, whatever its parent had, and it works as the
// parent's.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <tuple>

#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

enum class Parent { kNothing, kEndedRuntime, kLiveRuntime };
constexpr std::array kParentNames = {"Nothing", "EndedRuntime", "LiveRuntime"};
constexpr std::array kEngineNames = {"Auto", "IoUring", "Threads", "Libaio"};
constexpr int kSkipped = 77;

using Kind = std::tuple<Parent, sluice_io_engine_kind>;

class ForkTest : public testing::TestWithParam<Kind> {
 protected:
  static constexpr int64_t kElements = 40'000;

  // One step on states that are on the drive; what the masters are then, or nothing if this engine
  // can't be had here.
  std::optional<std::vector<float>> Train(sluice_runtime* runtime) {
    sluice_model model = 0;
    uint32_t number = 0;
    Expect(sluice_model_create(&model));
    Expect(sluice_model_add_unit(model, "unit", &number));
    Expect(sluice_model_add_tensor(model, 0, "tensor", kElements, 0, &number));
    sluice_options options = DefaultOptions();
    options.io_engine = std::get<1>(GetParam());
    options.workers = 2;
    options.chunk_elements = 4096;
    options.pinned_bytes = 2'000'000;
    const std::string path = dir_.path();
    const char* const paths[] = {path.c_str()};
    options.nvme_paths = paths;
    options.nvme_path_count = 1;
    const sluice_status made = sluice_runtime_create(model, &options, runtime);
    if (made == SLUICE_UNAVAILABLE || made == SLUICE_PERMISSION_DENIED) return std::nullopt;
    Expect(made);
    std::vector<float> values(kElements, 1.5f);
    sluice_ticket ticket = 0;
    Expect(sluice_write(*runtime, 0, SLUICE_MASTER, values.data(), SLUICE_F32, kElements, &ticket));
    Wait(*runtime, ticket);
    Expect(sluice_grad(*runtime, 0, values.data(), kElements, nullptr, &ticket));
    Wait(*runtime, ticket);
    sluice_group group = DefaultGroup();
    sluice_step_args args{};
    args.struct_size = sizeof(args);
    args.groups = &group;
    args.group_count = 1;
    Expect(sluice_step(*runtime, &args, &ticket));
    Wait(*runtime, ticket);
    Expect(sluice_read(*runtime, 0, SLUICE_MASTER, values.data(), SLUICE_F32, kElements, &ticket));
    Wait(*runtime, ticket);
    Expect(sluice_model_destroy(model));
    return values;
  }

  static void Expect(sluice_status status) {
    if (status == SLUICE_OK) return;
    ADD_FAILURE() << sluice_last_error();
    if (getpid() != parent_) _exit(1);
  }
  static void Wait(sluice_runtime runtime, sluice_ticket ticket) {
    sluice_status status = SLUICE_PENDING;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime, ticket, 100);
    Expect(status);
  }

  static const pid_t parent_;
  TempDir dir_;
};

const pid_t ForkTest::parent_ = getpid();

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  const auto [parent, engine] = info.param;
  return std::string(kParentNames[static_cast<size_t>(parent)]) + kEngineNames[engine];
}

INSTANTIATE_TEST_SUITE_P(All, ForkTest,
                         testing::Combine(testing::Values(Parent::kNothing, Parent::kEndedRuntime,
                                                          Parent::kLiveRuntime),
                                          testing::Values(SLUICE_IO_AUTO, SLUICE_IO_URING,
                                                          SLUICE_IO_THREADS, SLUICE_IO_LIBAIO)),
                         NameOf);

TEST_P(ForkTest, AChildMakesARuntimeOfItsOwn) {
  const Parent parent = std::get<0>(GetParam());
  sluice_runtime runtime = 0;
  const std::vector<float> expected(kElements, 1.5f - 0.1f);  // one step of Adam is lr long
  if (parent != Parent::kNothing) {
    const auto values = Train(&runtime);
    if (!values) GTEST_SKIP() << sluice_last_error();
    EXPECT_THAT(*values, testing::Pointwise(testing::FloatNear(1e-5f), expected));
    if (parent == Parent::kEndedRuntime) Expect(sluice_runtime_destroy(runtime));
  }
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // SIGALRM ends what hangs
    sluice_runtime own = 0;
    const auto values = Train(&own);
    if (!values) _exit(kSkipped);
    int wrong = 0;
    for (const float value : *values) wrong += std::abs(value - 1.4f) < 1e-5f ? 0 : 1;
    Expect(sluice_runtime_destroy(own));
    _exit(wrong == 0 ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "not here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  if (parent == Parent::kLiveRuntime) Expect(sluice_runtime_destroy(runtime));
}

}  // namespace
}  // namespace sluice
