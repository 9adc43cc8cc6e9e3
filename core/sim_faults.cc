#include "core/sim_faults.h"

namespace sluice {

uint64_t NextRandom(uint64_t* state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void SimFaults::Script(SimSeam seam, SimFault fault, uint64_t nth, Repeat repeat) {
  Seam& s = seams_[static_cast<size_t>(seam)];
  s.scripted = fault;
  s.at = s.calls + nth;
  s.repeat = repeat;
}

void SimFaults::Draw(SimSeam seam, SimFault fault, uint64_t n) {
  seams_[static_cast<size_t>(seam)].drawn.push_back({fault, n});
}

void SimFaults::Clear() {
  for (Seam& seam : seams_) {
    seam.scripted = SimFault::kNone;
    seam.drawn.clear();
  }
}

SimFault SimFaults::Next(SimSeam seam) {
  Seam& s = seams_[static_cast<size_t>(seam)];
  ++s.calls;
  SimFault fault = SimFault::kNone;
  if (s.scripted != SimFault::kNone &&
      (s.repeat == Repeat::kOnce ? s.calls == s.at : s.calls >= s.at)) {
    fault = s.scripted;
  }
  for (const Drawn& drawn : s.drawn) {
    const bool hit = NextRandom(&random_state_) % drawn.one_in == 0;
    if (hit && fault == SimFault::kNone) fault = drawn.fault;
  }
  if (fault != SimFault::kNone) ++happened_;
  return fault;
}

}  // namespace sluice
