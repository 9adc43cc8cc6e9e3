#include "core/openmp_waits.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <string_view>
#include <system_error>
#include <thread>

#include "fmt/format.h"

namespace sluice {

namespace {

// What the ABI of libgomp has for `#pragma omp parallel num_threads(threads)`.
using GompParallel = void (*)(void (*region)(void*), void* argument, unsigned threads,
                              unsigned flags);

constexpr std::chrono::milliseconds kLate(5);    // of one thread of a team, for which others wait
constexpr std::chrono::microseconds kSpun(200);  // more than a wait takes of a core if it is short

std::chrono::nanoseconds CpuTimeOfThread() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

// The paths of the OpenMP runtimes that are loaded.
std::vector<std::string> Loaded() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        const std::string_view path(info->dlpi_name);
        const std::string_view name = path.substr(path.rfind('/') + 1);
        for (const std::string_view kind : {"libgomp", "libomp", "libiomp5"}) {
          if (name.starts_with(kind))
            static_cast<std::vector<std::string>*>(found)->emplace_back(path);
        }
        return 0;
      },
      &paths);
  return paths;
}

// libgomp ends the process if it can't start a thread.
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
    } else if (!region->somebody.exchange(true)) {
      std::this_thread::sleep_for(kLate);
    }
  }
  const std::thread::id beginner = std::this_thread::get_id();
  std::atomic<bool> somebody{false};
  std::chrono::nanoseconds before{};
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
  void Work(unsigned threads) {
    pthread_setname_np(pthread_self(), "sluice-idle");  // and so are those it starts
    parallel_([](void*) {}, nullptr, threads, 0);       // starts them
    LateRegion region;
    parallel_(&LateRegion::Run, &region, threads, 0);
    is_short_ = region.somebody && CpuTimeOfThread() - region.before < kSpun;
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
  for (const std::string& path : Loaded()) waits->Add(path, cores, cores_most);
  if (waits->description_.empty()) waits->description_ = "no OpenMP runtime is loaded";
  return waits;
}

void OpenMpWaits::Add(const std::string& path, int cores, int cores_most) {
  bool is_short = false;
  void* const library = path.find("libgomp") == std::string::npos
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
  description_ += fmt::format("{}{}: {}", description_.empty() ? "" : "; ", path,
                              is_short ? "threads sleep where they wait for each other"
                                       : "threads may spin where they wait for each other");
}

}  // namespace sluice
