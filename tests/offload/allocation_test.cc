// A warm step allocates nothing, on whatever thread, also through the C ABI: every allocation of
// the process is counted.

#include <gtest/gtest.h>
#include <malloc.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>

#include "offload/run/factory.h"
#include "offload/sluice.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"
#include "tests/offload/ranks_fixture.h"
#include "tests/offload/smallest_budget.h"
#include "tests/offload/trainer.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};
void Count() {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
}
}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t n, size_t size) {
  Count();
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t size) {
  Count();
  return __libc_realloc(p, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
}
#endif

namespace sluice {
namespace {

using testing::OddModel;

class AllocationTest : public ::testing::TestWithParam<IoEngineKind> {
 protected:
  void Wait(Ticket ticket) {
    for (;;) {
      const auto result = runtime_->Wait(ticket, std::chrono::milliseconds(100));
      if (!result) continue;
      SLUICE_CHECK_MSG(result->ok(), result->ToString());
      return;
    }
  }
  // A forward, a backward, and the step, whose request is the caller's.
  void Iterate(StepRequest request) {
    runtime_->BeginIteration(0, true);
    const auto units = static_cast<uint32_t>(spec_.units.size());
    for (uint32_t i = 0; i < 2 * units; ++i) {
      const UnitIndex unit(i < units ? i : 2 * units - 1 - i);
      Wait(runtime_->Acquire(unit));
      auto view = runtime_->MakeView(unit);
      SLUICE_CHECK(view.ok());
      (*view)->deleter(*view);
      for (const TensorIndex t : runtime_->layout().unit(unit).tensors) {
        if (i < units) continue;
        const auto bytes = static_cast<size_t>(2 * spec_.tensors[t.value()].elements);
        Wait(runtime_->PushGrad(t, std::span(grads_).first(bytes)));
      }
      SLUICE_CHECK(runtime_->Release(unit).ok());
    }
    runtime_->EndIteration();
    Wait(runtime_->Step(std::move(request)));
    Wait(runtime_->Drain());
  }

  TempDir dir_;
  ModelSpec spec_ = OddModel();
  std::vector<std::byte> grads_;
  std::unique_ptr<OffloadRuntime> runtime_;
};

TEST_P(AllocationTest, AWarmStepAllocatesNothing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has its own allocator";
#endif
  RuntimeConfig config;
  config.chunk_elements = 2 * kCellElements;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.placement.resident_elements_max = 100;
  config.placement.state_buffers = 4;
  config.placement.param_buffers = 4;
  config.engine = GetParam();
  config.nvme_paths = {dir_.path()};
  config.budgets = {Bytes(0), Bytes(0), GiB(1)};
  for (;;) {
    const auto plan = MakePlan(spec_, config);
    if (plan.ok()) break;
    (TierNamed(plan.status()) == "hbm" ? config.budgets.hbm : config.budgets.pinned) =
        *SmallestNamed(plan.status());
  }
  config.budgets.hbm = config.budgets.hbm * 2;
  config.budgets.pinned += KiB(300);  // some of both fits in RAM
  auto runtime = MakeRuntime(spec_, config);
  if (absl::IsUnavailable(runtime.status())) GTEST_SKIP() << runtime.status();
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  runtime_ = *std::move(runtime);
  testing::Trainer trainer(runtime_.get(), spec_, {});
  ASSERT_TRUE(trainer.Load().ok());
  int64_t most = 0;
  for (const ModelSpec::Tensor& t : spec_.tensors) most = std::max(most, t.elements);
  grads_.resize(static_cast<size_t>(2 * most));
  const StepRequest request{.groups = testing::Groups(), .lent = {}, .clip_norm = 1.0};
  for (int warm = 0; warm < 20; ++warm) Iterate(request);
  for (int step = 0; step < 10; ++step) {
    StepRequest copy = request;
    allocations = 0;
    counting = true;
    Iterate(std::move(copy));
    counting = false;
    EXPECT_EQ(allocations, 0) << "step " << step;
  }
}

// Two ranks, which are threads of this process: what both allocate is counted.
class RanksAllocationTest : public ::testing::TestWithParam<int> {
 protected:
  RanksAllocationTest() : case_(testing::InMemory(2, GetParam())) {
    pthread_barrier_init(&barrier_, nullptr, case_.ranks);
  }
  ~RanksAllocationTest() override { pthread_barrier_destroy(&barrier_); }

  static void Wait(OffloadRuntime* runtime, Ticket ticket) {
    for (;;) {
      const auto result = runtime->Wait(ticket, std::chrono::milliseconds(100));
      if (!result) continue;
      SLUICE_CHECK_MSG(result->ok(), result->ToString());
      return;
    }
  }
  // Two micro-steps, of which the first one ends a window, and the step.
  void Iterate(OffloadRuntime* runtime, StepRequest request) const {
    const auto units = static_cast<uint32_t>(case_.spec.units.size());
    for (const bool boundary : {false, true}) {
      runtime->BeginIteration(boundary ? 1 : 0, boundary);
      for (uint32_t i = 0; i < 2 * units; ++i) {
        const UnitIndex unit(i < units ? i : 2 * units - 1 - i);
        Wait(runtime, runtime->Acquire(unit));
        for (const TensorIndex t : runtime->layout().unit(unit).tensors) {
          if (i < units) continue;
          const auto bytes = static_cast<size_t>(2 * case_.spec.tensors[t.value()].elements);
          Wait(runtime, runtime->PushGrad(t, std::span(grads_).first(bytes)));
        }
        SLUICE_CHECK(runtime->Release(unit).ok());
      }
      runtime->EndIteration();
    }
    Wait(runtime, runtime->Step(std::move(request)));
    Wait(runtime, runtime->Drain());
  }
  void RunRank(uint32_t rank, RankLinks links) {
    auto runtime = testing::MakeRank(case_, rank, std::move(links));
    SLUICE_CHECK(runtime.ok());
    {
      testing::Trainer trainer(runtime->get(), case_.spec, {});
      SLUICE_CHECK(trainer.Load().ok());
    }
    const StepRequest request{.groups = testing::Groups(), .lent = {}, .clip_norm = 1.0};
    for (int step = 0; step < 30; ++step) {
      StepRequest copy = request;
      pthread_barrier_wait(&barrier_);
      if (rank == 0) allocations = 0;
      if (rank == 0) counting = step >= 20;
      pthread_barrier_wait(&barrier_);
      Iterate(runtime->get(), std::move(copy));
      pthread_barrier_wait(&barrier_);
      counting = false;
      pthread_barrier_wait(&barrier_);
      if (rank == 0) EXPECT_EQ(allocations, 0) << "step " << step;
    }
    SLUICE_CHECK(OffloadRuntime::Close(*std::move(runtime)).ok());
  }

  testing::RanksCase case_;
  const std::vector<std::byte> grads_ = std::vector<std::byte>(size_t{2} * 12289);
  pthread_barrier_t barrier_;
};

TEST_P(RanksAllocationTest, AWarmStepAllocatesNothing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has its own allocator";
#endif
  std::vector<RankLinks> links = testing::LinkRanks(case_.ranks);
  testing::OnRanks(case_.ranks, [&](uint32_t r) { RunRank(r, std::move(links[r])); });
}

INSTANTIATE_TEST_SUITE_P(Stages, RanksAllocationTest, ::testing::Values(0, 1, 2));

// As a framework calls: many gradients at a time, groups, and places of parameters that are its
// own.
class CApiAllocationTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kUnits = 3, kLent = 2;  // the last unit's parameters are lent
  static constexpr uint32_t kTensors[kUnits] = {40, 1, 3};
  static constexpr int64_t kElements[kUnits] = {300, 9000, 5000};

  static void Ok(sluice_status status) {
    SLUICE_CHECK_MSG(status == SLUICE_OK, sluice_last_error());
  }
  void Wait(sluice_ticket ticket) const {
    sluice_status status = SLUICE_PENDING;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime_, ticket, 100);
    Ok(status);
  }
  void SetUp() override {
    Ok(sluice_model_create(&model_));
    uint32_t number = 0;
    for (uint32_t u = 0; u < kUnits; ++u) {
      Ok(sluice_model_add_unit(model_, "unit", &number));
      for (uint32_t t = 0; t < kTensors[u]; ++t) {
        Ok(sluice_model_add_tensor(model_, u, "a tensor whose name takes memory", kElements[u],
                                   t % 2, &number));
        if (u == kLent) Ok(sluice_model_set_keep(model_, number, SLUICE_KEEP_STATES));
        given_[u].push_back({values_.data(), kElements[u], number, u == kLent ? 1u : 0u});
        parameters_.emplace_back(static_cast<size_t>(kElements[u]), 1.0F);
        places_.push_back({u == kLent ? parameters_.back().data() : nullptr, SLUICE_F32, 0});
      }
    }
    const char* const paths[] = {dir_.path().c_str()};
    sluice_options options = DefaultOptions();
    options.nvme_paths = paths;
    options.nvme_path_count = 1;
    Ok(sluice_runtime_create(model_, &options, &runtime_));
    for (uint32_t t = 0; t < places_.size(); ++t) {
      sluice_ticket ticket = 0;
      Ok(sluice_write(runtime_, t, SLUICE_MASTER, parameters_[t].data(), SLUICE_F32,
                      static_cast<int64_t>(parameters_[t].size()), &ticket));
      Wait(ticket);
    }
    for (sluice_group& group : groups_) group = DefaultGroup();
  }
  void TearDown() override {
    Ok(sluice_runtime_destroy(runtime_));
    Ok(sluice_model_destroy(model_));
  }
  void Iterate() {
    sluice_ticket ticket = 0;
    Ok(sluice_iteration_begin(runtime_, 0, SLUICE_ITERATION_BOUNDARY));
    for (uint32_t i = 0; i < 2 * kUnits; ++i) {
      const uint32_t unit = i < kUnits ? i : 2 * kUnits - 1 - i;
      Ok(sluice_acquire(runtime_, unit, nullptr, &ticket));
      Wait(ticket);
      if (unit != kLent) {
        DlManagedTensor* view = nullptr;
        Ok(sluice_unit_view(runtime_, unit, reinterpret_cast<void**>(&view)));
        view->deleter(view);
      }
      if (i >= kUnits) {
        Ok(sluice_grads(runtime_, given_[unit].data(), given_[unit].size(), nullptr, &ticket));
        Wait(ticket);
      }
      Ok(sluice_release(runtime_, unit, nullptr));
    }
    Ok(sluice_iteration_end(runtime_));
    const sluice_step_args args = {sizeof(args), groups_, 2, 1.0, places_.data(), places_.size()};
    Ok(sluice_step(runtime_, &args, &ticket));
    Wait(ticket);
    Ok(sluice_drain(runtime_, &ticket));
    Wait(ticket);
  }

  TempDir dir_;
  std::vector<float> values_ = std::vector<float>(9000, 0.5F);
  std::vector<std::vector<float>> parameters_;
  std::vector<sluice_gradient> given_[kUnits];
  std::vector<sluice_place> places_;
  sluice_group groups_[2];
  sluice_model model_ = 0;
  sluice_runtime runtime_ = 0;
};

TEST_F(CApiAllocationTest, AWarmStepAllocatesNothing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has its own allocator";
#endif
  for (int warm = 0; warm < 20; ++warm) Iterate();
  for (int step = 0; step < 10; ++step) {
    allocations = 0;
    counting = true;
    Iterate();
    counting = false;
    EXPECT_EQ(allocations, 0) << "step " << step;
  }
}

TEST(AllocationCountTest, CountsWhatLibrariesTake) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has its own allocator";
#endif
  allocations = 0;
  counting = true;
  const auto text = std::make_unique<std::string>(100, 'x');
  counting = false;
  EXPECT_EQ(allocations, 2) << *text;
}

INSTANTIATE_TEST_SUITE_P(Engines, AllocationTest,
                         ::testing::Values(IoEngineKind::kThreads, IoEngineKind::kLibaio,
                                           IoEngineKind::kIoUring));

}  // namespace
}  // namespace sluice
