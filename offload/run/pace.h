// offload/run/pace.h
//
// When a rank that has nothing to say comes to the next round of an Agreement. A round ends when
// all have come, so who waits for another comes at once: then it hears what that one says as soon
// as it says it. Who waits for nobody comes a little later, for the sake of others that may wait
// for what it never says. None of this decides what is agreed on.
//
// A rank is ahead of another if it has said more of any kind. Ranks that run the same trace say the
// same; what they differ in counts until the next step.
//
// Threads: one. Allocates nothing.

#ifndef SLUICE_OFFLOAD_RUN_PACE_H_
#define SLUICE_OFFLOAD_RUN_PACE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "comm/rank.h"
#include "core/clock.h"
#include "offload/run/topic.h"

namespace sluice {

class Pace {
 public:
  Pace(Rank own, uint32_t ranks) : own_(own.value()), said_(ranks, Counts{}) {}

  void OnSaid(Rank rank, Topic topic);
  // A round has ended: until this rank comes to the next, with nothing to say.
  Nanos PauseAfter(bool anything_was_said);
  bool ahead() const;

 private:
  enum class Kind : uint8_t { kGradients, kMeetings, kSteps, kParams, kValues, kFetches };
  static constexpr size_t kKinds = 6;
  using Counts = std::array<uint64_t, kKinds>;

  uint64_t& Count(size_t rank, Kind kind) { return said_[rank][static_cast<size_t>(kind)]; }
  void ForgetIfAllStep();

  const uint32_t own_;
  std::vector<Counts> said_;  // by rank, since all last came to a step
  Nanos pause_{0};
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_PACE_H_
