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

class ThreadExecutor final : public Executor {
 public:
  ~ThreadExecutor() override {
    queue_.Stop();
    for (std::thread& thread : threads_) thread.join();
  }

  void Start(int workers) {  // may throw; what was started is the destructor's
    threads_.reserve(static_cast<size_t>(workers));
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { Work(); });
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
    return fmt::format("{} worker threads", threads_.size());
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

  WorkQueue<Task> queue_;
  std::atomic<size_t> pending_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> MakeExecutor(int workers) {
  if (workers < 1) {
    return absl::InvalidArgumentError(
        fmt::format("an executor of {} workers was asked for; at least 1 is needed", workers));
  }
  try {
    auto executor = std::make_unique<ThreadExecutor>();
    executor->Start(workers);
    return executor;
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(
        fmt::format("{} worker threads can't be started: {}", workers, e.what()));
  }
}

}  // namespace sluice
