#include "tools/control_rig.h"

#include <chrono>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "core/clock.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "nvme/finished_ops.h"
#include "offload/run/factory.h"
#include "optim/adamw.h"
#include "tools/bench_cases.h"

namespace sluice::tools {
namespace {

SteadyClock* RealClock() {
  static SteadyClock clock;
  return &clock;
}
HugePageResource* RealMemory() {
  static HugePageResource resource;
  return &resource;
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
    const double begin = ThreadCpuSeconds();
    task->Run();
    *seconds_ += ThreadCpuSeconds() - begin;
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

// The smallest budget of `tier` that works, within 1 KiB.
void Shrink(const ModelSpec& spec, RuntimeConfig* config, Bytes Budgets::*tier) {
  Bytes works = config->budgets.*tier;
  for (Bytes step = works / 2; step >= KiB(1); step = step / 2) {
    config->budgets.*tier = works - step;
    if (MakePlan(spec, *config).ok()) works = works - step;
  }
  config->budgets.*tier = works;
}

constexpr int64_t kElements = 64;
constexpr auto kSoon = std::chrono::milliseconds(100);

}  // namespace

ControlRig::ControlRig(uint32_t units) : units_(units), values_(kElements, 1.0F) {
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

ControlRig::~ControlRig() = default;

ControlRig::Seconds ControlRig::Step() {
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

double ControlRig::Resident(int times) {
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

double ControlRig::Of(absl::FunctionRef<void()> work) {
  task_seconds_ = 0;
  const double begin = ThreadCpuSeconds();
  work();
  return ThreadCpuSeconds() - begin - task_seconds_;
}

void ControlRig::Wait(Ticket ticket) {
  for (;;) {
    const auto result = runtime_->Wait(ticket, kSoon);
    if (!result) continue;
    SLUICE_CHECK_MSG(result->ok(), result->ToString());
    return;
  }
}

}  // namespace sluice::tools
