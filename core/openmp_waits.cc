#include "core/openmp_waits.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <system_error>
#include <thread>

#include "core/config.h"
#include "core/openmp_runtimes.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// What the ABI of libgomp has for `#pragma omp parallel num_threads(threads)`.
using GompParallel = void (*)(void (*region)(void*), void* argument, unsigned threads,
                              unsigned flags);

constexpr std::chrono::milliseconds kLate(5);    // of one thread of a team, for which others wait
constexpr std::chrono::microseconds kSpun(200);  // more than a wait takes of a core if it is short
constexpr int kTries = 20;  // to find a wait: a busy machine may run the late thread first

std::chrono::nanoseconds CpuTimeOfThread() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

// How often the calling thread gave its core away to wait.
int64_t SleepsOfThread() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nvcsw;
}

// libgomp ends the process if it can't start a thread, so that is tried before, with usual stacks.
bool CanStart(int threads) {
  std::latch all_asked(1);
  std::vector<std::thread> trial;
  trial.reserve(static_cast<size_t>(threads));
  bool can = true;
  try {
    for (int i = 0; i < threads; ++i) trial.emplace_back([&all_asked] { all_asked.wait(); });
  } catch (const std::system_error&) {
    can = false;
  }
  all_asked.count_down();
  for (std::thread& thread : trial) thread.join();
  return can;
}

// A region in which one thread of the team is late; the thread that began it waits at the end.
struct LateRegion {
  static void Run(void* argument) {
    auto* const region = static_cast<LateRegion*>(argument);
    if (std::this_thread::get_id() == region->beginner) {
      region->before = CpuTimeOfThread();
      region->sleeps_before = SleepsOfThread();
    } else if (!region->somebody.exchange(true)) {
      std::this_thread::sleep_for(kLate);
    }
  }
  const std::thread::id beginner = std::this_thread::get_id();
  std::atomic<bool> somebody{false};
  std::chrono::nanoseconds before{};
  int64_t sleeps_before = 0;
};

}  // namespace

// Threads of one libgomp that sleep. Their team is of the thread that began it, and ends with it.
class OpenMpWaits::Team {
 public:
  explicit Team(GompParallel parallel) : parallel_(parallel) {}
  ~Team() {
    stop_.count_down();
    if (thread_.joinable()) thread_.join();
  }

  // Whether waits are short once it has `threads`.
  bool Start(int threads) {
    if (!CanStart(threads)) return false;
    try {
      thread_ = std::thread([this, threads] { Work(static_cast<unsigned>(threads)); });
    } catch (const std::system_error&) {
      return false;
    }
    tried_.wait();
    return is_short_;
  }

 private:
  // Whether who waits for the team sleeps. On a busy machine one that spins takes little of a core
  // too, but it does not give it away.
  bool Sleeps(unsigned threads) const {
    for (int i = 0; i < kTries; ++i) {
      LateRegion region;
      parallel_(&LateRegion::Run, &region, threads, 0);
      if (!region.somebody || CpuTimeOfThread() - region.before >= kSpun) return false;
      if (SleepsOfThread() > region.sleeps_before) return true;
    }
    return false;
  }

  void Work(unsigned threads) {
    pthread_setname_np(pthread_self(), "sluice-idle");  // and so are those it starts
    parallel_([](void*) {}, nullptr, threads, 0);       // starts them
    is_short_ = Sleeps(threads);
    tried_.count_down();
    stop_.wait();
  }

  const GompParallel parallel_;
  bool is_short_ = false;
  std::latch tried_{1};
  std::latch stop_{1};
  std::thread thread_;
};

OpenMpWaits::OpenMpWaits() = default;
OpenMpWaits::~OpenMpWaits() = default;

std::unique_ptr<OpenMpWaits> OpenMpWaits::MakeShort(int cores, int cores_most) {
  std::unique_ptr<OpenMpWaits> waits(new OpenMpWaits);
  for (const std::string& path : LoadedOpenMp()) waits->Add(path, cores, cores_most);
  if (waits->description_.empty())
    waits->description_ = "no OpenMP runtime was loaded when this one was made";
  return waits;
}

void OpenMpWaits::Add(const std::string& path, int cores, int cores_most) {
  bool is_short = false;
  // Of other stacks nobody here can try whether there is room.
  const bool own_stacks = GetEnv("OMP_STACKSIZE") || GetEnv("GOMP_STACKSIZE");
  const bool is_gnu = path.find("libgomp", path.rfind('/') + 1) != std::string::npos;
  void* const library = !is_gnu || own_stacks
                            ? nullptr
                            : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  if (library != nullptr) {
    const auto parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
    // The mask of now may be narrower than the one that the runtime found.
    for (const int threads : {cores + 1, cores_most + 1}) {
      if (parallel == nullptr || is_short) break;
      teams_.push_back(std::make_unique<Team>(parallel));
      is_short = teams_.back()->Start(threads);
      if (!is_short) teams_.pop_back();
    }
    dlclose(library);
  }
  all_short_ = all_short_ && is_short;
  description_ += fmt::format("{}{}: {}{}", description_.empty() ? "" : "; ", path,
                              is_short ? "threads sleep where they wait for each other"
                                       : "threads may spin where they wait for each other",
                              is_gnu && own_stacks ? ", since OMP_STACKSIZE is set" : "");
}

}  // namespace sluice
