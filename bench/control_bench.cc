// bench/control_bench.cc
//
// What the control plane costs by itself: plans, and what the control thread does for each chunk,
// gradient and acquisition. Drives, device and workers are here such that cost next to nothing:
// they do their work at once, in the calling thread, which also turns the runtime's loop, on blocks
// of 4 KiB. What tasks take (checksums, the update) is taken off; what the drives and the device
// copy is not. Not in it: system calls for transfers, and waking a thread that sleeps.
//
// Time is the thread's CPU time, round by round; medians count.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "core/types.h"
#include "nvme/finished_ops.h"
#include "offload/plan/cache_segments.h"
#include "offload/plan/schedule.h"
#include "offload/plan/trace.h"
#include "offload/run/factory.h"
#include "optim/adamw.h"

namespace sluice {
namespace {

// ---- Plans

// Units in forward and backward, in a cache for half of them.
struct Problem {
  Problem(int64_t units, int64_t sizes) {
    Trace steps;
    const auto count = static_cast<uint32_t>(units);
    for (uint32_t i = 0; i < 2 * count; ++i) {
      const UnitIndex unit(i < count ? i : 2 * count - 1 - i);
      steps.push_back({unit, true});
      steps.push_back({unit, false});
    }
    trace = IndexedTrace(std::move(steps));
    Bytes all;
    for (uint32_t u = 0; u < count; ++u) {
      unit_bytes.push_back(MiB(1 + static_cast<int64_t>(u * 2654435761u >> 16) % sizes));
      all += unit_bytes.back();
    }
    capacity = all / 2 + MiB(sizes);
  }
  IndexedTrace trace{{}};
  std::vector<Bytes> unit_bytes;
  Bytes capacity;
};

void PlanShapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"units", "sizes"});
  for (const int64_t sizes : {1, 4}) {
    for (const int64_t units : {1000, 10'000, 100'000, 1'000'000}) b->Args({units, sizes});
  }
  b->Unit(benchmark::kMillisecond);
}

// A whole iteration and the forward of the next, from an empty cache.
void PlanAll(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1));
  Planner planner(problem.unit_bytes);
  const SegmentList empty(problem.capacity);
  int64_t moves = 0;
  for (auto _ : state) {
    planner.Begin({.trace = &problem.trace}, empty, [](UnitIndex) { return false; });
    for (; planner.Next() != nullptr; planner.Pop()) ++moves;
  }
  state.counters["moves"] = static_cast<double>(moves) / static_cast<double>(state.iterations());
  state.counters["s_per_move"] = benchmark::Counter(
      static_cast<double>(moves), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(PlanAll)->Apply(PlanShapes);

// A departure in the middle of forward: planned anew, with the cache full, as far as eight moves.
void PlanAnew(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1));
  Planner planner(problem.unit_bytes);
  SegmentList segments(problem.capacity);
  SegmentList::Place rest = segments.first();
  size_t held = 0;
  while (rest != SegmentList::kNone && segments.at(rest).size >= problem.unit_bytes[held]) {
    const UnitIndex unit(static_cast<uint32_t>(held));
    const SegmentList::Place place = segments.Put(rest, rest, unit, problem.unit_bytes[held++]);
    rest = segments.at(place).after;
  }
  for (auto _ : state) {
    planner.Begin({.trace = &problem.trace, .happened = held / 2}, segments,
                  [&](UnitIndex unit) { return unit.value() == held / 2; });
    for (int moves = 0; moves < 8 && planner.Next() != nullptr; ++moves) planner.Pop();
  }
}
BENCHMARK(PlanAnew)->Apply(PlanShapes);

// ---- Seams that cost next to nothing

SteadyClock* RealClock() {
  static SteadyClock clock;
  return &clock;
}
HugePageResource* RealMemory() {
  static HugePageResource resource;
  return &resource;
}

double CpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class RamEngine final : public IoEngine {
 public:
  RamEngine(const std::vector<Bytes>& sizes, Limits limits) : limits_(limits) {
    for (const Bytes size : sizes) files_.emplace_back(size.size());
  }
  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    for (; taken < ops.size() && finished_.size() < limits_.in_flight_max; ++taken) {
      IoOp* const op = ops[taken];
      std::byte* const at = files_[op->file.value()].data() + op->offset.value();
      const bool read = op->kind == IoKind::kRead;
      std::memcpy(read ? op->memory.data() : at, read ? at : op->memory.data(), op->memory.size());
      op->status = absl::OkStatus();
      op->transferred = Bytes(static_cast<int64_t>(op->memory.size()));
      finished_.Push(op);
    }
    return taken;
  }
  size_t Poll(std::span<IoOp*> done, Deadline) override { return finished_.HandOut(done); }
  void Wake() override {}
  size_t in_flight() const override { return finished_.size(); }
  std::string description() const override { return "memory"; }
  absl::Status Close() override { return finished_.Drop(); }

 private:
  const Limits limits_;
  std::vector<std::vector<std::byte>> files_;
  FinishedOps finished_;
};

class InlineExecutor final : public Executor {
 public:
  explicit InlineExecutor(double* seconds) : seconds_(seconds) {}
  void Submit(Task* task) override {
    const double begin = CpuSeconds();
    task->Run();
    *seconds_ += CpuSeconds() - begin;
  }
  void HelpUntil(absl::FunctionRef<bool()>, std::chrono::milliseconds) override {}
  void WakeHelpers() override {}
  int concurrency() const override { return 1; }
  size_t pending() const override { return 0; }
  void Abandon() override {}
  std::string description() const override { return "inline"; }

 private:
  double* const seconds_;
};

class InlineDevice final : public Device {
 public:
  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override {
    return Arena::Create(RealMemory(), size);
  }
  void Enqueue(DeviceOp* op) override {
    if (op->work != nullptr) op->work->Launch(nullptr);
    if (!op->from.empty()) std::memcpy(op->to, op->from.data(), op->from.size());
    op->status = absl::OkStatus();
    op->inbox->Post(op->event);
  }
  StreamCounts pending() const override { return {}; }
  void Abandon() override {}
  absl::Status RegisterHost(MemoryView) override { return absl::OkStatus(); }
  absl::Status CheckStream(CallerStream) override { return absl::OkStatus(); }
  absl::StatusOr<Fence> RecordFence(CallerStream) override { return Fence(); }
  void OrderAfter(StreamKind, const Fence&) override {}
  bool orders_callers() const override { return false; }
  absl::StatusOr<Fence> RecordEnd(StreamKind) override { return Fence(); }
  absl::Status OrderCallerAfter(CallerStream, const Fence&) override { return absl::OkStatus(); }
  bool host_addressable() const override { return true; }
  DlDevice dl_device() const override { return {.device_type = kDlCpu, .device_id = 0}; }
  std::string description() const override { return "inline"; }
};

// ---- A model of many units of one chunk, whose states are on the drive

constexpr int64_t kElements = 64;
constexpr auto kSoon = std::chrono::milliseconds(100);

class Rig {
 public:
  explicit Rig(uint32_t units) : units_(units), values_(kElements, 1.0F) {
    ModelSpec spec;
    for (uint32_t u = 0; u < units; ++u) {
      const std::string name = std::to_string(u);
      spec.units.push_back({.name = name});
      spec.tensors.push_back({.name = name, .unit = UnitIndex(u), .elements = kElements});
    }
    RuntimeConfig config;
    config.types = {.param = FloatType::kF32, .grad = FloatType::kF32};
    config.placement.lowest_param_tier = Tier::kPinned;
    config.placement.resident_elements_max = 0;
    config.placement.state_buffers = 64;
    config.io.in_flight_max = 64;
    config.nvme_paths = {"memory"};
    config.budgets = {GiB(1), GiB(1), GiB(1)};
    Shrink(spec, &config, &Budgets::hbm);
    config.budgets.hbm += KiB(4) * (units / 2);  // half of the units in the cache
    Shrink(spec, &config, &Budgets::pinned);
    auto plan = MakePlan(spec, config);
    SLUICE_CHECK_MSG(plan.ok(), plan.status().ToString());
    Seams seams;
    seams.clock = RealClock();
    seams.host_memory = RealMemory();
    seams.threaded = false;
    seams.executor = std::make_unique<InlineExecutor>(&task_seconds_);
    seams.device = std::make_unique<InlineDevice>();
    auto drives = DrivesOf(config);
    SLUICE_CHECK(drives.ok());
    seams.segments = SegmentsOf(*plan, *drives);
    seams.make_engine =
        [sizes = seams.segments.file_sizes, limits = config.io](
            std::span<const MemoryView>,
            std::span<const DirectFile>) -> absl::StatusOr<std::unique_ptr<IoEngine>> {
      return std::make_unique<RamEngine>(sizes, limits);
    };
    const RuntimeOptions options = OptionsOf(config, *plan);
    auto runtime = OffloadRuntime::Create(std::move(plan->layout), std::move(plan->placement),
                                          options, std::move(seams));
    SLUICE_CHECK_MSG(runtime.ok(), runtime.status().ToString());
    runtime_ = *std::move(runtime);
    for (uint32_t u = 0; u < units; ++u) {
      Wait(runtime_->Access({.write = true,
                             .tensor = TensorIndex(u),
                             .field = Field::kMaster,
                             .data = reinterpret_cast<std::byte*>(values_.data()),
                             .type = FloatType::kF32,
                             .done = nullptr}));
    }
  }

  // The control plane's seconds for a forward, the gradients, and the update of every chunk.
  struct Seconds {
    double acquisitions;
    double gradients;
    double chunks;
  };
  Seconds Step() {
    runtime_->BeginIteration(0, true);
    Seconds s{};
    s.acquisitions = Of([this] {
      for (uint32_t u = 0; u < units_; ++u) {
        Wait(runtime_->Acquire(UnitIndex(u)));
        SLUICE_CHECK(runtime_->Release(UnitIndex(u)).ok());
      }
    });
    s.gradients = Of([this] {
      const auto* const grad = reinterpret_cast<const std::byte*>(values_.data());
      for (uint32_t u = 0; u < units_; ++u) {
        tickets_.push_back(runtime_->PushGrad(TensorIndex(u), {grad, kElements * sizeof(float)}));
      }
      for (const Ticket ticket : tickets_) Wait(ticket);
      tickets_.clear();
    });
    runtime_->EndIteration();
    s.chunks = Of([this] {
      Wait(runtime_->Step({.groups = {Hyperparameters::Of(AdamWHyper{})}}));
      Wait(runtime_->Drain());
    });
    return s;
  }
  // Units moved into the cache so far.
  double Moves() const {
    const std::string report = runtime_->ReportJson();
    const std::string key = "\"fetches\":";
    const size_t at = report.find(key);
    return at == std::string::npos ? 0 : std::stod(report.substr(at + key.size()));
  }
  double Resident(int times) {
    Wait(runtime_->Acquire(UnitIndex(0)));
    const double seconds = Of([&] {
      for (int i = 0; i < times; ++i) {
        Wait(runtime_->Acquire(UnitIndex(0)));
        SLUICE_CHECK(runtime_->Release(UnitIndex(0)).ok());
        if (i % 64 == 0) runtime_->RunOnce(kNoWait);
      }
      runtime_->RunOnce(kNoWait);
    });
    SLUICE_CHECK(runtime_->Release(UnitIndex(0)).ok());
    return seconds;
  }

 private:
  // The smallest that works, within 1 KiB.
  static void Shrink(const ModelSpec& spec, RuntimeConfig* config, Bytes Budgets::*tier) {
    Bytes works = config->budgets.*tier;
    for (Bytes step = works / 2; step >= KiB(1); step = step / 2) {
      config->budgets.*tier = works - step;
      if (MakePlan(spec, *config).ok()) works = works - step;
    }
    config->budgets.*tier = works;
  }
  template <typename Work>
  double Of(const Work& work) {
    task_seconds_ = 0;
    const double begin = CpuSeconds();
    work();
    return CpuSeconds() - begin - task_seconds_;
  }
  void Wait(Ticket ticket) {
    for (;;) {
      const auto result = runtime_->Wait(ticket, kSoon);
      if (!result) continue;
      SLUICE_CHECK_MSG(result->ok(), result->ToString());
      return;
    }
  }

  const uint32_t units_;
  std::vector<float> values_;
  std::vector<Ticket> tickets_;
  double task_seconds_ = 0;
  std::unique_ptr<OffloadRuntime> runtime_;
};

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void ControlThread(benchmark::State& state) {
  constexpr int kRounds = 31;
  const auto units = static_cast<uint32_t>(state.range(0));
  Rig rig(units);
  for (int warm = 0; warm < 3; ++warm) rig.Step();
  const double moves = rig.Moves();
  std::vector<double> acquisitions, gradients, chunks, resident;
  for (auto _ : state) {
    for (int r = 0; r < kRounds; ++r) {
      const Rig::Seconds s = rig.Step();
      acquisitions.push_back(s.acquisitions);
      gradients.push_back(s.gradients);
      chunks.push_back(s.chunks);
      resident.push_back(rig.Resident(1000) / 1000);
    }
  }
  state.counters["chunks/s"] = units / Median(chunks);
  state.counters["gradients/s"] = units / Median(gradients);
  state.counters["acquisitions/s"] = units / Median(acquisitions);
  state.counters["moves_per_acquisition"] = (rig.Moves() - moves) / kRounds / units;
  state.counters["resident_s"] = Median(resident);
  state.counters["resident_s_min"] = std::ranges::min(resident);
  state.counters["chunks/s_max"] = units / std::ranges::min(chunks);
}
BENCHMARK(ControlThread)
    ->ArgName("units")
    ->Arg(256)
    ->Arg(2048)
    ->Arg(16384)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
