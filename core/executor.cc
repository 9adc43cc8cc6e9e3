#include "core/executor.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"
#include "oneapi/tbb/task_arena.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sluice {

#if defined(__x86_64__)
namespace {
// Nearest, no traps, no flags; FTZ and DAZ. Whatever the caller's, so that the bits are the same.
constexpr unsigned kWorkerMode = 0x1F80 | 0x8040;
}  // namespace
ScopedFlushDenormals::ScopedFlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(kWorkerMode); }
ScopedFlushDenormals::~ScopedFlushDenormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
ScopedFlushDenormals::ScopedFlushDenormals() {
  uint64_t fpcr = 0;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  saved_ = static_cast<unsigned>(fpcr);
  // Nearest, no traps; FZ. Whatever the caller's, so that the bits are the same.
  asm volatile("msr fpcr, %0" ::"r"(uint64_t{1} << 24));
}
ScopedFlushDenormals::~ScopedFlushDenormals() {
  const uint64_t fpcr = saved_;
  asm volatile("msr fpcr, %0" ::"r"(fpcr));
}
#else
#error "set the processor's flush-to-zero mode here"
#endif

namespace {

// The threads are always ours, also those of a oneTBB arena, which they enter for good: oneTBB
// would start its workers where a refusal can't be returned and ends the process, and in a child of
// fork it would wait for those of its parent.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(std::unique_ptr<tbb::task_arena> arena) : arena_(std::move(arena)) {}
  ~ThreadExecutor() override {
    queue_.Stop();
    for (std::thread& thread : threads_) thread.join();
  }

  void Start(int workers) {  // may throw; what was started is the destructor's
    if (arena_ != nullptr) arena_->initialize();
    threads_.reserve(static_cast<size_t>(workers));
    for (int i = 0; i < workers; ++i) {
      threads_.emplace_back(
          [this] { arena_ == nullptr ? Work() : arena_->execute([this] { Work(); }); });
    }
  }

  void Submit(Task* task) override {
    ++pending_;
    queue_.Push(task);
  }
  void HelpUntil(absl::FunctionRef<bool()> done, std::chrono::milliseconds timeout) override {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (Task* task = queue_.PopUnless(done, deadline)) {
      const ScopedFlushDenormals flush;
      Run(task);
      if (std::chrono::steady_clock::now() >= deadline) return;
    }
  }
  void WakeHelpers() override { queue_.WakeVisitors(); }
  size_t pending() const override { return pending_; }
  void Abandon() override { pending_ -= queue_.Drop(); }
  int concurrency() const override { return static_cast<int>(threads_.size()); }
  std::string description() const override {
    return arena_ == nullptr ? fmt::format("{} std::thread workers", threads_.size())
                             : fmt::format("oneTBB arena of {}", threads_.size());
  }

 private:
  void Work() {
    pthread_setname_np(pthread_self(), "sluice-update");
    const ScopedFlushDenormals flush;
    while (Task* task = queue_.Pop()) Run(task);
  }
  void Run(Task* task) {
    task->Run();
    --pending_;
  }

  const std::unique_ptr<tbb::task_arena> arena_;
  WorkQueue<Task> queue_;
  std::atomic<size_t> pending_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> MakeExecutor(ExecutorKind kind, int workers) {
  if (workers < 1) {
    return absl::InvalidArgumentError(
        fmt::format("an executor of {} workers was asked for; at least 1 is needed", workers));
  }
  try {
    std::unique_ptr<tbb::task_arena> arena;  // with places for our threads, and none for oneTBB's
    if (kind == ExecutorKind::kTbb)
      arena = std::make_unique<tbb::task_arena>(workers, static_cast<unsigned>(workers));
    auto executor = std::make_unique<ThreadExecutor>(std::move(arena));
    executor->Start(workers);
    return executor;
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(
        fmt::format("{} worker threads can't be started: {}", workers, e.what()));
  }
}

}  // namespace sluice
