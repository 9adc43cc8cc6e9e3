// core/openmp_waits.h
//
// Makes the threads of the OpenMP runtimes in this process sleep where they wait for each other,
// instead of spinning: what they don't use is then free for the updates, and for other processes.
// Which of the two they do is otherwise decided when such a runtime is loaded (OMP_WAIT_POLICY),
// before anybody can say anything here. They spin again while that pays (core/wait_policy.h).
//
// GNU's libgomp, which PyTorch is shipped with, spins for milliseconds only as long as it manages
// no more threads than there are cores. So a team of its threads, more than there are cores, is
// started and sleeps. Whether waits are short from then on is tried, not assumed. The team ends
// while others may spin. One thread has these teams of all runtimes, and looks now and then whether
// there is another one, and at how the process fares; it takes nothing from a step.
//
// Threads: any. Nothing fails: where threads can't be had, where their stacks were given a size
// (OMP_STACKSIZE), or where a runtime is another one (LLVM's, Intel's), it is left as it is, and
// the description says so.

#ifndef SLUICE_CORE_OPENMP_WAITS_H_
#define SLUICE_CORE_OPENMP_WAITS_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/wait_policy.h"

namespace sluice {

class OpenMpWaits {
 public:
  enum class Mode { kSleep, kSleepUnlessItPays };

  // `cores` is how many this process may use, `cores_most` how many it could have used when the
  // runtimes were loaded. Those that are loaded now have been tried when it returns.
  // `numbers` are those of the cores, for kSleepUnlessItPays.
  static std::unique_ptr<OpenMpWaits> Make(int cores, int cores_most, Mode mode,
                                           std::vector<int> numbers = {});
  ~OpenMpWaits();  // the runtimes wait as before

  // A step of training begins; what a step is to WaitPolicy.
  void StepTaken();

  // Where each runtime lies, and how its threads wait; and how often spinning was tried.
  std::string description() const;
  // Whether the threads of all of them sleep, but while that doesn't pay.
  bool all_short() const;
  // Lets all threads spin, or none, and returns how they wait now. Once they can't be made to sleep
  // again, for want of threads, they go on to spin. For tests; else WaitPolicy decides.
  bool Spin(bool spin);

 private:
  class Team;
  OpenMpWaits(int cores, int cores_most, Mode mode, std::vector<int> numbers);
  void Work();
  void Find();
  bool Switch(bool spin);
  bool CanSwitch() const;
  void Count(bool cores, WaitSample* sample) const;
  bool MaySwitch(std::optional<bool> asked) const;

  const int cores_;
  const int cores_most_;
  const Mode mode_;
  const std::vector<int> numbers_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t steps_ = 0;                         // guarded by mutex_
  Nanos last_step_{};                         // likewise
  bool found_ = false;                        // likewise: those that were loaded have been tried
  bool stop_ = false;                         // likewise
  std::optional<bool> asked_;                 // likewise: of Spin
  bool spinning_ = false;                     // likewise
  int64_t tries_ = 0;                         // likewise
  std::vector<std::unique_ptr<Team>> teams_;  // likewise to be read by others than thread_
  Nanos retry_after_{};                       // thread_'s: once threads were missing
  Nanos retry_at_{};                          // thread_'s
  uint64_t loads_ = 0;                        // thread_'s: when it looked for runtimes last
  std::set<std::string> paths_;               // likewise: of those that it knows
  std::thread thread_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_OPENMP_WAITS_H_
