// core/openmp_waits.h
//
// Makes the threads of the OpenMP runtimes in this process sleep where they wait for each other,
// instead of spinning: what they don't use is then free for the updates, and for other processes.
// Which of the two they do is otherwise decided when such a runtime is loaded (OMP_WAIT_POLICY),
// before anybody can say anything here.
//
// GNU's libgomp, which PyTorch is shipped with, spins for milliseconds only as long as it manages
// no more threads than there are cores. So a team of its threads, more than there are cores, is
// started and sleeps as long as the object lives. Whether waits are short from then on is tried,
// not assumed.
//
// Threads: any; one object may be made beside another. Nothing fails: where threads can't be had,
// where their stacks were given a size (OMP_STACKSIZE), or where a runtime is another one (LLVM's,
// Intel's), it is left as it is, and the description says so.

#ifndef SLUICE_CORE_OPENMP_WAITS_H_
#define SLUICE_CORE_OPENMP_WAITS_H_

#include <memory>
#include <string>
#include <vector>

namespace sluice {

class OpenMpWaits {
 public:
  // Of the runtimes that are loaded now. `cores` is how many this process may use, `cores_most` how
  // many it could have used when they were loaded.
  static std::unique_ptr<OpenMpWaits> MakeShort(int cores, int cores_most);
  ~OpenMpWaits();  // the runtimes wait as before

  // Where each runtime lies, and how its threads wait.
  const std::string& description() const { return description_; }
  // Whether the threads of all of them sleep.
  bool all_short() const { return all_short_; }

 private:
  class Team;
  OpenMpWaits();
  void Add(const std::string& path, int cores, int cores_most);

  std::vector<std::unique_ptr<Team>> teams_;
  std::string description_;
  bool all_short_ = true;
};

}  // namespace sluice

#endif  // SLUICE_CORE_OPENMP_WAITS_H_
