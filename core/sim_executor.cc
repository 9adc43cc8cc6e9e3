#include "core/sim_executor.h"

#include <deque>
#include <utility>

#include "fmt/format.h"

namespace sluice {

namespace {

class Workers final : public SimExecutor {
 public:
  Workers(SimWorld* world, int workers, SimWork work)
      : world_(world), workers_(workers), work_(std::move(work)) {}
  ~Workers() override {
    while ((busy_ > 0 || !waiting_.empty()) && world_->RunNext(kForever)) {
    }
  }

  void Submit(Task* task) override {
    waiting_.push_back({task, submitted_++});
    StartSome();
  }
  void HelpUntil(absl::FunctionRef<bool()> done, std::chrono::milliseconds timeout) override {
    const TimePoint until = world_->Now() + timeout;
    while (!done() && world_->RunNext(until)) {
    }
  }
  void WakeHelpers() override {}  // nobody sleeps in a simulation
  int concurrency() const override { return workers_; }
  size_t pending() const override { return static_cast<size_t>(busy_) + waiting_.size(); }
  void Abandon() override { waiting_.clear(); }
  std::string description() const override { return fmt::format("{} simulated workers", workers_); }
  void SetHelpers(int helpers) override {
    helpers_ = helpers;
    StartSome();
  }

 private:
  struct Waiting {
    Task* task;
    uint64_t number;
  };

  Nanos TimeFor(const Task& task) {
    const auto percent =
        static_cast<int64_t>(world_->Uniform(work_.percent_min, work_.percent_max));
    const TaskCost cost = task.cost();
    const double scale = cost.kind == TaskKind::kOther ? 1 : work_.scale;
    const double seconds =
        static_cast<double>(cost.amount) * scale / work_.per_second[static_cast<size_t>(cost.kind)];
    return (work_.start + Nanos(static_cast<int64_t>(seconds * 1e9))) * percent / 100;
  }

  void StartSome() {
    while (busy_ < workers_ + helpers_ && !waiting_.empty()) {
      if (work_.cores != nullptr && !work_.cores->TryTake()) {
        if (!std::exchange(waits_for_core_, true)) {
          work_.cores->WhenFree([this, alive = std::weak_ptr<bool>(alive_)] {
            if (alive.expired()) return;
            waits_for_core_ = false;
            StartSome();
          });
        }
        return;
      }
      const Waiting next = waiting_.front();
      waiting_.pop_front();
      ++busy_;
      const Nanos takes =
          TimeFor(*next.task) + world_->Delay(world_->faults()->Next(SimSeam::kTask));
      world_->Log(fmt::format("task {} starts", next.number));
      world_->At(world_->Now() + takes, [this, next] {
        --busy_;
        world_->Log(fmt::format("task {} ends", next.number));
        {
          const ScopedFlushDenormals flush;
          next.task->Run();
        }
        if (work_.cores != nullptr) work_.cores->Give();
        StartSome();
      });
    }
  }

  SimWorld* const world_;
  const int workers_;
  const SimWork work_;
  int helpers_ = 0;
  int busy_ = 0;
  bool waits_for_core_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  uint64_t submitted_ = 0;
  std::deque<Waiting> waiting_;
};

}  // namespace

void SimCores::Give() {
  ++free_;
  for (const std::function<void()>& start : std::exchange(waiting_, {})) start();
}

std::unique_ptr<SimExecutor> MakeSimExecutor(SimWorld* world, int workers, SimWork work) {
  return std::make_unique<Workers>(world, workers, std::move(work));
}

}  // namespace sluice
