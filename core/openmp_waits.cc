#include "core/openmp_waits.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <system_error>
#include <thread>
#include <utility>

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

// Threads of one libgomp that sleep. Their team is of the thread that calls, always the same, and
// ends with it.
class OpenMpWaits::Team {
 public:
  Team(const std::string& path, int cores, int cores_most) : path_(path) {
    const bool own_stacks = GetEnv("OMP_STACKSIZE") || GetEnv("GOMP_STACKSIZE");
    const bool is_gnu = path.find("libgomp", path.rfind('/') + 1) != std::string::npos;
    if (is_gnu && own_stacks) note_ = ", since OMP_STACKSIZE is set";
    // Of other stacks nobody here can try whether there is room.
    if (!is_gnu || own_stacks) return;
    void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    if (library == nullptr) return;
    parallel_ = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
    pause_ = reinterpret_cast<OmpPause>(dlsym(library, "omp_pause_resource"));
    host_ = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_initial_device"));
    dlclose(library);
    // The mask of now may be narrower than the one that the runtime found.
    for (const int threads : {cores + 1, cores_most + 1}) {
      if (parallel_ == nullptr || is_short_) break;
      threads_ = threads;
      runs_ = false;
      is_short_ = Start() && Sleeps();
    }
    if (!is_short_) End();
  }

  // Whether waits are short now.
  bool is_short() const { return is_short_; }
  bool can_end() const { return pause_ != nullptr && host_ != nullptr; }

  // Whether waits are short from now on, as they were once.
  bool Start() {
    if (runs_) return true;
    // Twice: the kernel still counts threads a moment after they have ended.
    if (!CanStart(2 * threads_)) return false;
    parallel_([](void*) {}, nullptr, static_cast<unsigned>(threads_), 0);
    runs_ = true;
    return true;
  }
  void End() {
    runs_ = false;
    constexpr int kSoft = 1;  // omp_pause_soft
    if (can_end()) pause_(kSoft, host_());
  }

  std::string description(bool spins) const {
    return fmt::format("{}: {}{}", path_,
                       !is_short_ ? "threads may spin where they wait for each other"
                       : spins    ? "threads spin where they wait for each other, since that pays"
                                  : "threads sleep where they wait for each other",
                       note_);
  }

 private:
  // What OpenMP 5.0 has to end the teams of the thread that calls.
  using OmpPause = int (*)(int kind, int device);

  // Whether who waits for the team sleeps. On a busy machine one that spins takes little of a core
  // too, but it does not give it away.
  bool Sleeps() const {
    for (int i = 0; i < kTries; ++i) {
      LateRegion region;
      parallel_(&LateRegion::Run, &region, static_cast<unsigned>(threads_), 0);
      if (!region.somebody || CpuTimeOfThread() - region.before >= kSpun) return false;
      if (SleepsOfThread() > region.sleeps_before) return true;
    }
    return false;
  }

  const std::string path_;
  std::string note_;
  GompParallel parallel_ = nullptr;
  OmpPause pause_ = nullptr;
  int (*host_)() = nullptr;
  int threads_ = 0;
  bool is_short_ = false;
  bool runs_ = false;
};

OpenMpWaits::OpenMpWaits(int cores, int cores_most, Mode mode, std::vector<int> numbers)
    : cores_(cores), cores_most_(cores_most), mode_(mode), numbers_(std::move(numbers)) {}

OpenMpWaits::~OpenMpWaits() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::unique_ptr<OpenMpWaits> OpenMpWaits::Make(int cores, int cores_most, Mode mode,
                                               std::vector<int> numbers) {
  std::unique_ptr<OpenMpWaits> waits(new OpenMpWaits(cores, cores_most, mode, std::move(numbers)));
  try {
    waits->thread_ = std::thread([raw = waits.get()] { raw->Work(); });
  } catch (const std::system_error&) {
    return waits;
  }
  std::unique_lock lock(waits->mutex_);
  waits->changed_.wait(lock, [&waits] { return waits->found_; });
  return waits;
}

void OpenMpWaits::StepTaken() {
  const Nanos now = SteadyClock().Now();
  const std::lock_guard lock(mutex_);
  ++steps_;
  last_step_ = now;
}

bool OpenMpWaits::all_short() const {
  const std::lock_guard lock(mutex_);
  return found_ && std::all_of(teams_.begin(), teams_.end(),
                               [](const auto& team) { return team->is_short(); });
}

std::string OpenMpWaits::description() const {
  const std::lock_guard lock(mutex_);
  if (!found_) return "threads may spin where they wait for each other: no thread can be started";
  if (teams_.empty()) return "no OpenMP runtime is loaded";
  std::string text;
  for (const std::unique_ptr<Team>& team : teams_)
    text += (text.empty() ? "" : "; ") + team->description(spinning_);
  if (tries_ > 0) text += fmt::format("; spinning was tried {} times", tries_);
  return text;
}

bool OpenMpWaits::Spin(bool spin) {
  std::unique_lock lock(mutex_);
  asked_ = spin;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !asked_; });
  return spinning_;
}

// Called by thread_, as all below.
void OpenMpWaits::Work() {
  pthread_setname_np(pthread_self(), "sluice-idle");  // and so are those it starts
  constexpr std::chrono::seconds kIdle(1);
  WaitPolicy policy(static_cast<int>(numbers_.size()));
  int64_t steps = 0;
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    Find();
    lock.lock();
    found_ = true;
    changed_.notify_all();
    const bool idle = mode_ == Mode::kSleep || steps_ == steps;
    steps = steps_;
    changed_.wait_for(lock, idle ? kIdle : WaitPolicy::kPeriod, [this] { return stop_ || asked_; });
    if (stop_) return;
    WaitSample sample{.steps = steps_, .last_step = last_step_};
    const bool spins = spinning_;
    const std::optional<bool> asked = asked_;
    lock.unlock();  // a step never waits for what is counted and started here
    bool spin = asked.value_or(spins);
    if (!asked && retry_after_ > Nanos(0)) {
      spin = false;  // threads were missing once: they don't spin again
    } else if (!asked && mode_ == Mode::kSleepUnlessItPays && CanSwitch()) {
      Count(policy.asks_for_cores(), &sample);
      spin = policy.Next(sample);
    }
    const bool done = spin == spins || (CanSwitch() && MaySwitch(asked) && Switch(spin));
    lock.lock();
    if (done) spinning_ = spin;  // else it is tried again
    tries_ = policy.tries();
    if (asked) asked_.reset();
    changed_.notify_all();
  }
}

// Runtimes that were not there the last time.
void OpenMpWaits::Find() {
  const uint64_t loads = LibrariesLoaded();
  if (loads == loads_) return;
  loads_ = loads;
  for (const std::string& path : LoadedOpenMp()) {
    if (!paths_.insert(path).second) continue;
    auto team = std::make_unique<Team>(path, cores_, cores_most_);
    const std::lock_guard lock(mutex_);
    if (spinning_ && team->is_short()) team->End();
    teams_.push_back(std::move(team));
  }
}

// What this process has done so far, and the cores if that is asked for, as the kernel tells it.
void OpenMpWaits::Count(bool cores, WaitSample* sample) const {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  sample->sleeps = usage.ru_nvcsw;
  if (cores) sample->cores = ReadCoreTimes(FilesBelow(""), numbers_);
  sample->now = SteadyClock().Now();
}

bool OpenMpWaits::CanSwitch() const {
  return !teams_.empty() && std::all_of(teams_.begin(), teams_.end(), [](const auto& team) {
    return team->is_short() && team->can_end();
  });
}

// Going back to sleep takes threads. Where there were none, it is tried again later and later.
bool OpenMpWaits::MaySwitch(std::optional<bool> asked) const {
  return asked || SteadyClock().Now() >= retry_at_;
}

bool OpenMpWaits::Switch(bool spin) {
  constexpr Nanos kFirst = std::chrono::seconds(1), kLast = std::chrono::seconds(64);
  bool done = true;
  for (const std::unique_ptr<Team>& team : teams_) {
    if (spin)
      team->End();
    else
      done = team->Start() && done;
  }
  if (!done) {
    retry_after_ = std::clamp(2 * retry_after_, kFirst, kLast);
    retry_at_ = SteadyClock().Now() + retry_after_;
  }
  return done;
}

}  // namespace sluice
