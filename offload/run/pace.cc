#include "offload/run/pace.h"

#include <algorithm>

namespace sluice {

namespace {
// For what others say: nothing, then ever longer while nobody says anything.
constexpr Nanos kAheadMin = std::chrono::microseconds(200);
constexpr Nanos kAheadMax = std::chrono::milliseconds(4);
// For their sake: if one is ahead of this rank; and if all have said the same, likewise longer.
constexpr Nanos kBehind = std::chrono::milliseconds(4);
constexpr Nanos kEvenMin = std::chrono::milliseconds(8);
constexpr Nanos kEvenMax = std::chrono::milliseconds(32);
}  // namespace

void Pace::OnSaid(Rank rank, Topic topic) {
  const size_t r = rank.value();
  switch (topic) {
    case Topic::kGradients:
    case Topic::kNothing:
      ++Count(r, Kind::kGradients);
      return;
    case Topic::kStep:
      ++Count(r, Kind::kSteps);
      return ForgetIfAllStep();
    case Topic::kModel:
    case Topic::kWindowEnd:
    case Topic::kClear:
    case Topic::kGradient:
      ++Count(r, Kind::kMeetings);
      return;
    case Topic::kParams:
      ++Count(r, Kind::kParams);
      return;
    case Topic::kAccess:
    case Topic::kValue:
    case Topic::kVote:
      ++Count(r, Kind::kValues);
      return;
    case Topic::kFetch:
      ++Count(r, Kind::kFetches);
      return;
    case Topic::kUrgent:
    case Topic::kUnwanted:
    case Topic::kGoesOn:
      return;
  }
}

void Pace::ForgetIfAllStep() {
  for (size_t r = 0; r < said_.size(); ++r) {
    if (Count(r, Kind::kSteps) == 0) return;
  }
  std::ranges::fill(said_, Counts{});
}

bool Pace::ahead() const {
  return std::ranges::any_of(said_, [this](const Counts& other) {
    for (size_t k = 0; k < kKinds; ++k) {
      if (said_[own_][k] > other[k]) return true;
    }
    return false;
  });
}

Nanos Pace::PauseAfter(bool anything_was_said) {
  Nanos shortest = kBehind, longest = kBehind;
  if (ahead()) {
    shortest = kAheadMin;
    longest = kAheadMax;
    if (anything_was_said) return pause_ = Nanos(0);
  } else if (std::ranges::all_of(said_, [this](const Counts& c) { return c == said_[own_]; })) {
    shortest = kEvenMin;
    longest = kEvenMax;
  }
  pause_ = anything_was_said ? shortest : std::clamp(2 * pause_, shortest, longest);
  return pause_;
}

}  // namespace sluice
