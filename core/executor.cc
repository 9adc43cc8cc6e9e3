#include "core/executor.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"
#include "oneapi/tbb/global_control.h"
#include "oneapi/tbb/task_arena.h"
#include "oneapi/tbb/task_scheduler_observer.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sluice {

#if defined(__x86_64__)
namespace {
constexpr unsigned kFlushBits = 0x8040;  // FTZ and DAZ
}  // namespace
ScopedFlushDenormals::ScopedFlushDenormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(saved_ | kFlushBits);
}
ScopedFlushDenormals::~ScopedFlushDenormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
ScopedFlushDenormals::ScopedFlushDenormals() {
  uint64_t fpcr = 0;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  saved_ = static_cast<unsigned>(fpcr);
  fpcr |= uint64_t{1} << 24;  // FZ
  asm volatile("msr fpcr, %0" ::"r"(fpcr));
}
ScopedFlushDenormals::~ScopedFlushDenormals() {
  const uint64_t fpcr = saved_;
  asm volatile("msr fpcr, %0" ::"r"(fpcr));
}
#else
#error "set the processor's flush-to-zero mode here"
#endif

namespace {

class ThreadExecutor final : public Executor {
 public:
  ThreadExecutor() = default;
  ~ThreadExecutor() override {
    queue_.Stop();
    for (std::thread& thread : threads_) thread.join();
  }

  void Start(int workers) {  // may throw; what was started is the destructor's
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { Work(); });
  }

  void Submit(Task* task) override {
    ++pending_;
    queue_.Push(task);
  }
  size_t pending() const override { return pending_; }
  void Abandon() override { pending_ -= queue_.Drop(); }
  int concurrency() const override { return static_cast<int>(threads_.size()); }
  std::string description() const override {
    return fmt::format("{} std::thread workers", threads_.size());
  }

 private:
  void Work() {
    const ScopedFlushDenormals flush;
    while (Task* task = queue_.Pop()) {
      task->Run();
      --pending_;
    }
  }

  WorkQueue<Task> queue_;
  std::atomic<size_t> pending_{0};
  std::vector<std::thread> threads_;
};

// A oneTBB arena without a place for callers. Tasks wait in our own queue, so that the earliest is
// started first; the arena gets one closure per task that takes whatever is first by then.
class TbbExecutor final : public Executor {
 public:
  explicit TbbExecutor(int workers)
      : parallelism_(tbb::global_control::max_allowed_parallelism,
                     static_cast<size_t>(workers) + 1),
        arena_(workers, 0) {
    arena_.initialize();
  }
  ~TbbExecutor() override {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return open_ == 0; });
  }

  void Submit(Task* task) override {
    {
      const std::lock_guard lock(mutex_);
      queue_.Push(task);
      ++open_;
      ++pending_;
    }
    arena_.enqueue([this] { RunFirst(); });
  }
  size_t pending() const override {
    const std::lock_guard lock(mutex_);
    return pending_;
  }
  void Abandon() override {
    const std::lock_guard lock(mutex_);
    for (; !queue_.empty(); --pending_) queue_.Pop();
  }
  int concurrency() const override { return arena_.max_concurrency(); }
  std::string description() const override {
    return fmt::format("oneTBB arena of {}", arena_.max_concurrency());
  }

 private:
  void RunFirst() {
    Task* task = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (!queue_.empty()) task = queue_.Pop();
    }
    if (task != nullptr) {
      const ScopedFlushDenormals flush;
      task->Run();
    }
    const std::lock_guard lock(mutex_);
    if (task != nullptr) --pending_;
    if (--open_ == 0) idle_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  IntrusiveList<Task> queue_;  // guarded by mutex_
  size_t open_ = 0;            // guarded by mutex_: closures that the arena has
  size_t pending_ = 0;         // guarded by mutex_
  tbb::global_control parallelism_;
  tbb::task_arena arena_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> MakeExecutor(ExecutorKind kind, int workers) {
  if (workers < 1) {
    return absl::InvalidArgumentError(
        fmt::format("an executor of {} workers was asked for; at least 1 is needed", workers));
  }
  try {
    if (kind == ExecutorKind::kTbb) return std::make_unique<TbbExecutor>(workers);
    auto executor = std::make_unique<ThreadExecutor>();
    executor->Start(workers);
    return executor;
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(
        fmt::format("{} worker threads can't be started: {}", workers, e.what()));
  }
}

}  // namespace sluice
