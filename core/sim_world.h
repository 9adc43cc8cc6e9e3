// core/sim_world.h
//
// The simulated seams share one world: one virtual clock, one source of randomness, one list of
// what will happen, and one log of what did. Nothing runs by itself: whoever waits
// (SimIoEngine::Poll, under the control thread's loop) advances the world event by event, so a
// whole runtime, its devices and its caller run on one thread, in virtual time, and the same seed
// gives the same log byte for byte. For tests; not linked into the library.
//
// Threads: one. Allocates freely.

#ifndef SLUICE_CORE_SIM_WORLD_H_
#define SLUICE_CORE_SIM_WORLD_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/device.h"
#include "core/event.h"
#include "core/sim_faults.h"

namespace sluice {

class SimWorld final : public Clock, public Waker {
 public:
  explicit SimWorld(uint64_t seed) : random_state_(seed * 2 + 1), faults_(seed) {}

  TimePoint Now() const override { return now_; }

  // Calls `action` at `when` (not before now); simultaneous ones in an order drawn from the seed.
  void At(TimePoint when, std::function<void()> action);

  // Runs the next thing that happens, if it happens by `deadline`; otherwise moves the clock to
  // `deadline` (unless that is kForever or has passed) and returns false.
  bool RunNext(Deadline deadline);
  bool idle() const { return pending_.empty(); }  // nothing will happen by itself

  // Set by Wake (an event was posted); cleared by TakeWake.
  void Wake() override { woken_ = true; }
  bool TakeWake() { return std::exchange(woken_, false); }

  uint64_t Random();                              // uniform over 64 bits
  uint64_t Uniform(uint64_t low, uint64_t high);  // inclusive
  bool OneIn(uint64_t n) { return Uniform(1, n) == 1; }

  // What goes wrong, in every seam of this world.
  SimFaults* faults() { return &faults_; }
  Nanos Delay(SimFault fault);  // how much longer than usual something takes that ends so

  // The bug that tests have planted above, by a number of theirs; 0: none.
  void Plant(int bug) { planted_bug_ = bug; }
  int planted_bug() const { return planted_bug_; }

  // "<now in ns> <line>\n" onto the log.
  void Log(std::string_view line);
  const std::string& log() const { return log_; }
  void MuteLog() { muted_ = true; }  // long simulations keep none

 private:
  TimePoint now_{0};
  uint64_t random_state_;
  SimFaults faults_;
  std::map<std::pair<TimePoint, uint64_t>, std::function<void()>>
      pending_;  // by time, then a random tie-break
  bool woken_ = false;
  bool muted_ = false;
  int planted_bug_ = 0;
  std::string log_;
};

// A stream in virtual time: what is on it happens one after the other.
class SimQueue : public std::enable_shared_from_this<SimQueue> {
 public:
  // Called when all before has ended; calls Next when it has ended itself.
  using Begin = std::function<void(SimQueue*)>;

  void Push(Begin begin);
  void Next();
  void Drop() { waiting_.clear(); }  // what has not begun
  bool busy() const { return busy_; }

 private:
  std::deque<Begin> waiting_;
  bool busy_ = false;
};

// A stream of the simulated caller: what it would compute, in order. The device takes what was
// added when it records a fence there, or makes the stream wait for one of its own, and runs it at
// some later virtual time, when everything before has run and passed. So the caller may be far
// ahead of its stream; whoever releases memory before the stream has read it, pushes a gradient
// before the stream has written it, or uses a unit that has yet to come, depends on the fences.
// Pass its address as CallerStream::handle; it outlives what is on it.
class SimCallerStream {
 public:
  void Add(std::function<void()> work) { work_.push_back(std::move(work)); }
  // What was added takes so much longer.
  void Delay(Nanos by) { delay_ += by; }
  // While it is being captured nothing may be ordered on it.
  void set_capturing(bool capturing) { capturing_ = capturing; }

 private:
  friend class SimDevice;
  std::vector<std::function<void()>> work_;
  Nanos delay_{0};
  bool capturing_ = false;
  const std::shared_ptr<SimQueue> queue_ = std::make_shared<SimQueue>();
};

// Streams in virtual time. Work is done, and a copy reads its source and writes its destination,
// when the operation completes. Copies to the device share one link. The destructor lets the world
// go on until all have, or nothing happens any more.
struct SimDeviceOptions {
  double link_bytes_per_second = 16e9;
  Bytes hbm_limit = Bytes(INT64_MAX);
  bool host_addressable = false;
};
std::unique_ptr<Device> MakeSimDevice(const SimDeviceOptions& options, SimWorld* world,
                                      MemoryResource* resource);

}  // namespace sluice

#endif  // SLUICE_CORE_SIM_WORLD_H_
