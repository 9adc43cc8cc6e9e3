// core/sim_faults.h
//
// What goes wrong in a simulated world. Every simulated seam asks, at each of its calls, what shall
// become of it; the answer is scripted (the n-th call of a seam, once or from then on), or drawn
// with the world's seed. By default nothing goes wrong. For tests; not linked into the library.
//
// Threads: one.

#ifndef SLUICE_CORE_SIM_FAULTS_H_
#define SLUICE_CORE_SIM_FAULTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice {

// Where calls are counted. Files are made one by one when an engine is. Fences are points of the
// caller's streams; orders, those that make them wait for the device's. A rank's call is that it
// comes to an operation of its group, which is an error, late or silent.
enum class SimSeam : uint8_t { kRead, kWrite, kCopy, kTask, kFence, kMemory, kFile, kOrder, kRank };
inline constexpr int kSimSeamCount = 9;

enum class SimFault : uint8_t {
  kNone,
  kError,    // reads, writes, copies: ends with an error. A write's bytes may be on the drive
  kRefused,  // reads, writes: an error at once, untouched. Others: can't be had
  kShort,    // reads, writes: ends with an error when half is done
  kCorrupt,  // reads, writes: one bit is another, and nobody says so
  kLost,     // reads, writes: nothing is moved, and nobody says so
  kLate,     // all but memory, files and orders: takes seconds longer
  kSilent,   // likewise: ends a day later, when nobody waits any more
};

class SimFaults {
 public:
  enum class Repeat : uint8_t { kOnce, kAlways };

  explicit SimFaults(uint64_t seed) : random_state_(seed) {}

  // The `nth` call of `seam` from now (1 is the next), or that and all that follow. One script per
  // seam; another replaces it.
  void Script(SimSeam seam, SimFault fault, uint64_t nth, Repeat repeat);

  // Each call of `seam` ends so with a chance of one in `n`. Several faults of one seam may be
  // drawn.
  void Draw(SimSeam seam, SimFault fault, uint64_t n);

  // From now on nothing goes wrong.
  void Clear();

  // What becomes of the next call of `seam`. Called by the seams.
  SimFault Next(SimSeam seam);

  uint64_t calls(SimSeam seam) const { return seams_[static_cast<size_t>(seam)].calls; }
  uint64_t happened() const { return happened_; }  // faults of any kind, so far

 private:
  struct Drawn {
    SimFault fault;
    uint64_t one_in;
  };
  struct Seam {
    uint64_t calls = 0;
    SimFault scripted = SimFault::kNone;
    uint64_t at = 0;  // the call that the script is about
    Repeat repeat = Repeat::kOnce;
    std::vector<Drawn> drawn;
  };

  std::array<Seam, kSimSeamCount> seams_;
  uint64_t random_state_;
  uint64_t happened_ = 0;
};

// SplitMix64 (Steele, Lea & Flood 2014): the next number, and the state moves on.
uint64_t NextRandom(uint64_t* state);

}  // namespace sluice

#endif  // SLUICE_CORE_SIM_FAULTS_H_
