#include "offload/plan/schedule.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

namespace {

constexpr size_t kNever = std::numeric_limits<size_t>::max();

// For each unit, the acquisitions of the trace that use it, and a cursor over them.
class NextUses {
 public:
  NextUses(const Trace& trace, size_t first, size_t unit_count)
      : uses_(unit_count), cursor_(unit_count, 0) {
    size_t position = 0;
    for (const TraceStep& step : trace) {
      if (!step.acquire) continue;
      if (position >= first) uses_[step.unit.value()].push_back(position);
      ++position;
    }
  }
  // The first use of `unit` at or after acquisition `now`; `now` never goes back.
  size_t After(UnitIndex unit, size_t now) {
    const std::vector<size_t>& uses = uses_[unit.value()];
    size_t& c = cursor_[unit.value()];
    while (c < uses.size() && uses[c] < now) ++c;
    return c < uses.size() ? uses[c] : kNever;
  }

 private:
  std::vector<std::vector<size_t>> uses_;
  std::vector<size_t> cursor_;
};

// The replay of one trace.
class Replay {
 public:
  explicit Replay(const ScheduleInput& input)
      : input_(input),
        next_(*input.trace, input.first, input.unit_bytes.size()),
        segments_(input.segments.begin(), input.segments.end()),
        held_(input.unit_bytes.size(), 0),
        resident_(input.unit_bytes.size(), false),
        free_from_(input.unit_bytes.size(), input.first) {
    for (const Segment& s : segments_) {
      if (!s.unit) continue;
      resident_[s.unit->value()] = true;
      if (s.held) held_[s.unit->value()] = 1;
    }
  }

  Schedule Run() {
    size_t position = 0;  // acquisitions passed
    for (const TraceStep& step : *input_.trace) {
      const bool happened = step.acquire ? position++ < input_.first : position < input_.first;
      if (happened || input_.unit_bytes[step.unit.value()] == Bytes(0)) continue;
      if (step.acquire) {
        Acquire(step.unit, position - 1);
      } else {
        Release(step.unit);
      }
    }
    return std::move(schedule_);
  }

 private:
  void Acquire(UnitIndex unit, size_t position) {
    if (!resident_[unit.value()] && !MoveIn(unit, position)) {
      schedule_.impossible.push_back(position);
      return;
    }
    ++held_[unit.value()];
    SetHeld(unit, true);
    free_from_[unit.value()] = position + 1;
  }

  void Release(UnitIndex unit) {
    int& held = held_[unit.value()];
    if (held > 0 && --held == 0) SetHeld(unit, false);
  }

  bool MoveIn(UnitIndex unit, size_t position) {
    next_use_.clear();
    segment_free_from_.clear();
    for (const Segment& s : segments_) {
      next_use_.push_back(s.unit ? next_.After(*s.unit, position) : kNever);
      segment_free_from_.push_back(s.unit ? free_from_[s.unit->value()] : 0);
    }
    const Bytes bytes = input_.unit_bytes[unit.value()];
    const std::optional<Window> window =
        ChooseWindow(segments_, next_use_, segment_free_from_, bytes);
    if (!window) return false;
    Move move{.unit = unit,
              .offset = segments_[window->first].offset,
              .evicted = {},
              .not_before = input_.first,
              .needed_at = position};
    for (size_t i = window->first; i < window->last; ++i) {
      if (!segments_[i].unit) continue;
      const UnitIndex evicted = *segments_[i].unit;
      move.evicted.push_back(evicted);
      move.not_before = std::max(move.not_before, free_from_[evicted.value()]);
      resident_[evicted.value()] = false;
    }
    // Room that an earlier move left over is free only once that move has begun; moves begin in
    // order.
    if (!schedule_.moves.empty()) {
      move.not_before = std::max(move.not_before, schedule_.moves.back().not_before);
    }
    Place(&segments_, *window, unit, bytes);
    resident_[unit.value()] = true;
    schedule_.bytes += bytes;
    schedule_.moves.push_back(std::move(move));
    return true;
  }

  void SetHeld(UnitIndex unit, bool held) {
    for (Segment& s : segments_) {
      if (s.unit == unit) s.held = held;
    }
  }

  const ScheduleInput& input_;
  NextUses next_;
  std::vector<Segment> segments_;
  std::vector<int> held_;
  std::vector<bool> resident_;
  std::vector<size_t> free_from_;  // by unit: acquisitions after which its last use has begun
  std::vector<size_t> next_use_;   // by segment, while a window is chosen
  std::vector<size_t> segment_free_from_;  // the same
  Schedule schedule_;
};

}  // namespace

std::optional<Window> ChooseWindow(std::span<const Segment> segments,
                                   std::span<const size_t> next_use,
                                   std::span<const size_t> free_from, Bytes bytes) {
  std::optional<Window> best;
  size_t best_use = 0;
  size_t best_free = 0;
  Bytes best_evicted;
  for (size_t first = 0; first < segments.size(); ++first) {
    Bytes room, evicted;
    size_t nearest = kNever;
    size_t free = 0;
    size_t last = first;
    while (last < segments.size() && room < bytes && !segments[last].held) {
      room += segments[last].size;
      if (segments[last].unit) {
        evicted += segments[last].size;
        nearest = std::min(nearest, next_use[last]);
        free = std::max(free, free_from[last]);
      }
      ++last;
    }
    if (room < bytes) continue;
    const bool tie = best && nearest == best_use;
    const bool sooner = tie && (free < best_free || (free == best_free && evicted < best_evicted));
    if (!best || nearest > best_use || sooner) {
      best = Window{first, last};
      best_use = nearest;
      best_free = free;
      best_evicted = evicted;
    }
  }
  return best;
}

void Place(std::vector<Segment>* segments, Window window, UnitIndex unit, Bytes bytes) {
  std::vector<Segment>& s = *segments;
  const Bytes offset = s[window.first].offset;
  const Bytes end = s[window.last - 1].offset + s[window.last - 1].size;
  SLUICE_CHECK(end - offset >= bytes);
  s.erase(s.begin() + static_cast<ptrdiff_t>(window.first),
          s.begin() + static_cast<ptrdiff_t>(window.last));
  const auto at = s.insert(s.begin() + static_cast<ptrdiff_t>(window.first),
                           {.unit = unit, .offset = offset, .size = bytes, .held = false});
  if (end > offset + bytes) {
    s.insert(at + 1, {.unit = std::nullopt,
                      .offset = offset + bytes,
                      .size = end - offset - bytes,
                      .held = false});
  }
  MergeFree(segments);
}

void MergeFree(std::vector<Segment>* segments) {
  std::vector<Segment>& s = *segments;
  for (size_t i = 0; i + 1 < s.size();) {
    if (!s[i].unit && !s[i].held && !s[i + 1].unit && !s[i + 1].held) {
      s[i].size += s[i + 1].size;
      s.erase(s.begin() + static_cast<ptrdiff_t>(i) + 1);
    } else {
      ++i;
    }
  }
}

Schedule MakeSchedule(const ScheduleInput& input) { return Replay(input).Run(); }

}  // namespace sluice
