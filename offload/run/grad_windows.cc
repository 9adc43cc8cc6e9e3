// Windows and meetings of GradExchange: what the ranks have said of them, and what follows.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/grad_exchange.h"

namespace sluice {

// Everything that came in it is said before, so that it is agreed on when all have ended it.
void GradExchange::EndWindow(Said what) {
  SLUICE_CHECK(window_open() && !at_meeting_);
  for (uint32_t u = 0; u < units_.size() && failed_.ok(); ++u) {
    if (units_[u].collected > 0) Say(UnitIndex(u));
    if (units_[u].later_open) CloseLater(UnitIndex(u));
  }
  at_meeting_ = what.topic != Topic::kWindowEnd;
  closed_ = true;
  window_begun_ = false;
  agreement_->Say(what);
}

void GradExchange::OnSaid(Rank rank, Said said) {
  const UnitIndex unit(said.index);
  switch (said.topic) {
    case Topic::kGradients: {
      const Mark mark = MarkOf(unit, rank.value());
      SetMark(unit, rank.value(), {mark.turns + 1, mark.wont});
      break;
    }
    case Topic::kNothing:
      SetMark(unit, rank.value(), {MarkOf(unit, rank.value()).turns, true});
      break;
    default:
      return OnEnded(rank.value(), said);
  }
  AgreeIfAnswered(unit);
  Pump();
}

void GradExchange::SetMark(UnitIndex index, uint32_t rank, Mark mark) {
  Unit& unit = At(index);
  Mark& marked = MarkOf(index, rank);
  const auto said = [&] { return marked.turns > 0 && !marked.wont ? 1u : 0u; };
  const auto answered = [&] {
    return marked.turns > 0 || marked.wont || places_[rank] != kInWindow ? 1u : 0u;
  };
  unit.said -= said();
  unit.answered -= answered();
  marked = mark;
  unit.said += said();
  unit.answered += answered();
}

void GradExchange::AgreeIfAnswered(UnitIndex index) {
  Unit& unit = At(index);
  while (unit.said > 0 && unit.answered == communicator_->ranks()) {
    const Mark here = MarkOf(index, communicator_->rank().value());
    agreed_.push_back({index, here.turns > 0 && !here.wont});
    for (uint32_t r = 0; r < communicator_->ranks(); ++r) {
      const Mark mark = MarkOf(index, r);
      if (mark.turns > 0 && !mark.wont) SetMark(index, r, {mark.turns - 1, false});
    }
  }
}

void GradExchange::OnEnded(uint32_t rank, Said said) {
  const bool first = places_[rank] == kInWindow;
  places_[rank] = said.topic == Topic::kWindowEnd ? kAtEnd : kAtMeeting;
  meetings_[rank] = said;
  const bool all = std::ranges::find(places_, kInWindow) == places_.end();
  for (size_t u = units_.size(); u-- > 0;) {
    const UnitIndex index(static_cast<uint32_t>(u));
    const Mark mark = MarkOf(index, rank);
    if (first && mark.turns == 0 && !mark.wont) ++units_[u].answered;
    AgreeIfAnswered(index);
    // What ranks have of it that had said they wouldn't comes last.
    for (uint32_t r = 0; all && r < places_.size(); ++r)
      SetMark(index, r, {MarkOf(index, r).turns, false});
    AgreeIfAnswered(index);
  }
  Pump();
  if (all) OnWindowEnded();
}

// A rank that waits at a meeting has ended every window until then.
void GradExchange::OnWindowEnded() {
  meeting_agreed_ = std::ranges::find(places_, kAtEnd) == places_.end();
  if (meeting_agreed_) Agree();
  uint32_t ended = 0;
  for (Place& place : places_) {
    if (meeting_agreed_ || place == kAtEnd) place = kInWindow;
    ended += place == kInWindow ? 0 : 1;
  }
  std::ranges::fill(marks_, Mark{});
  for (Unit& unit : units_) {
    unit.said = 0;
    unit.answered = ended;
  }
  closed_ = false;
  if (meeting_agreed_ || !at_meeting_) ++progress_;
  if (!at_meeting_) TakeAll(&next_window_);
}

// All ranks are at meetings: at the same one, if all is well.
void GradExchange::Agree() {
  const auto what = [](Said meeting) {
    return meeting.topic == Topic::kGradient ? meeting.index / 2 : meeting.index;
  };
  met_given_ = false;
  for (uint32_t r = 0; r < meetings_.size(); ++r) {
    const Said said = meetings_[r];
    met_given_ = met_given_ || (said.topic == Topic::kGradient && said.index % 2 != 0);
    if (said.topic == meetings_[0].topic && what(said) == what(meetings_[0])) continue;
    return context_.fail(absl::FailedPreconditionError(fmt::format(
        "rank {} {} where rank 0 {}: with several ranks, all must do so, in the same order", r,
        InWords(said), InWords(meetings_[0]))));
  }
}

// What is on its way between ranks that have all come needs none of them, and has a deadline of its
// own.
RankWait GradExchange::Awaited() const {
  const uint32_t here = communicator_->rank().value();
  const auto waits = [&](std::string what, auto&& missing) {
    RankWait wait{.what = std::move(what), .missing = {}};
    for (uint32_t r = 0; r < places_.size(); ++r)
      if (missing(r)) wait.missing.push_back(r);
    return wait;
  };
  if (places_[here] == kAtMeeting)
    return waits(InWords(meetings_[here]), [&](uint32_t r) { return places_[r] != kAtMeeting; });
  if (closed_)
    return waits("has ended a micro-step", [&](uint32_t r) { return places_[r] == kInWindow; });
  // Units may come in another order on each rank: of all that are waited for, what lacks least.
  RankWait least;
  for (uint32_t u = 0; u < units_.size(); ++u) {
    const UnitIndex unit(u);
    if (MarkOf(unit, here).turns == 0) continue;
    RankWait wait =
        waits(fmt::format("has the gradients of unit '{}'", context_.layout->unit(unit).name),
              [&](uint32_t r) {
                const Mark& mark = MarkOf(unit, r);
                return places_[r] == kInWindow && mark.turns == 0 && !mark.wont;
              });
    if (least.missing.empty() || wait.missing.size() < least.missing.size())
      least = std::move(wait);
  }
  return least;
}

std::string GradExchange::InWords(Said meeting) const {
  const auto name = [this](uint32_t tensor) {
    return context_.layout->tensor(TensorIndex(tensor)).name;
  };
  if (meeting.topic == Topic::kStep) return "takes a step";
  if (meeting.topic == Topic::kCheckpoint) return "saves or loads a checkpoint";
  if (meeting.topic == Topic::kGradient)
    return fmt::format("reads or writes the gradient of tensor '{}'", name(meeting.index / 2));
  return meeting.index == 0
             ? "clears the gradients"
             : fmt::format("clears the gradient of tensor '{}'", name(meeting.index - 1));
}

}  // namespace sluice
