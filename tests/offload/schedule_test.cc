#include "offload/plan/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/status.h"

namespace sluice {
namespace {

using testing::ElementsAre;

constexpr size_t kNever = std::numeric_limits<size_t>::max();

// A cache, what lies in it, and a trace in which units are held for a while.
struct Problem {
  Trace trace;
  size_t first = 0;
  std::vector<Bytes> unit_bytes;
  std::vector<Segment> segments;
  Bytes capacity;

  Schedule Solve() const {
    return MakeSchedule(
        {.trace = &trace, .first = first, .unit_bytes = unit_bytes, .segments = segments});
  }
};

// `uniform`: units of one size, of which the capacity is a multiple.
Problem AnyProblem(bool uniform, size_t units_max, size_t steps_max) {
  Problem p;
  const auto units = *rc::gen::inRange<size_t>(1, units_max + 1);
  Bytes largest;
  for (size_t u = 0; u < units; ++u) {
    p.unit_bytes.push_back(KiB(uniform ? 4 : 4 * *rc::gen::inRange<int64_t>(0, 5)));
    largest = std::max(largest, p.unit_bytes.back());
  }
  p.capacity = uniform ? KiB(4 * *rc::gen::inRange<int64_t>(1, static_cast<int64_t>(units) + 1))
                       : largest + KiB(4 * *rc::gen::inRange<int64_t>(0, 12));
  std::vector<uint32_t> held;
  const auto steps = *rc::gen::inRange<size_t>(0, steps_max);
  for (size_t i = 0; i < steps; ++i) {
    if (!held.empty() && *rc::gen::inRange(0, 2) == 0) {
      const auto which = *rc::gen::inRange<size_t>(0, held.size());
      p.trace.push_back({UnitIndex(held[which]), false});
      held.erase(held.begin() + static_cast<ptrdiff_t>(which));
    } else {
      held.push_back(*rc::gen::inRange<uint32_t>(0, static_cast<uint32_t>(units)));
      p.trace.push_back({UnitIndex(held.back()), true});
    }
  }
  // Some units are there already, one after another, some of them held.
  Bytes used;
  for (uint32_t u = 0; u < units; ++u) {
    const Bytes bytes = p.unit_bytes[u];
    if (bytes == Bytes(0) || used + bytes > p.capacity || *rc::gen::inRange(0, 2) == 0) continue;
    const bool kept = *rc::gen::inRange(0, 4) == 0;
    p.segments.push_back({.unit = UnitIndex(u), .offset = used, .size = bytes, .held = kept});
    used += bytes;
  }
  if (p.capacity > used) {
    p.segments.push_back(
        {.unit = std::nullopt, .offset = used, .size = p.capacity - used, .held = false});
  }
  return p;
}

// Carries out a schedule step by step, each move as late as it may, and checks that it may.
class Execution {
 public:
  explicit Execution(const Problem& problem) : p_(problem), schedule_(problem.Solve()) {
    for (const Segment& s : p_.segments) {
      if (!s.unit) continue;
      places_[s.unit->value()] = {s.offset, s.size};
      if (s.held) held_[s.unit->value()] = 1;
    }
  }

  void Run() {
    for (const TraceStep& step : p_.trace) {
      if (p_.unit_bytes[step.unit.value()] == Bytes(0)) {
        position_ += step.acquire ? 1 : 0;
      } else if (step.acquire) {
        Acquire(step.unit.value());
      } else if (held_[step.unit.value()] > 0) {
        --held_[step.unit.value()];
      }
    }
    RC_ASSERT(next_ == schedule_.moves.size());
    RC_ASSERT(bytes_ == schedule_.bytes);
  }

 private:
  void Acquire(uint32_t unit) {
    while (next_ < schedule_.moves.size() && schedule_.moves[next_].needed_at == position_)
      Carry(schedule_.moves[next_++]);
    const bool impossible = std::ranges::count(schedule_.impossible, position_) > 0;
    RC_ASSERT(places_.contains(unit) != impossible);
    if (!impossible) {
      ++held_[unit];
      last_acquired_[unit] = position_;
    }
    ++position_;
  }

  void Carry(const Move& move) {
    const Bytes size = p_.unit_bytes[move.unit.value()];
    RC_ASSERT(!places_.contains(move.unit.value()));
    RC_ASSERT(move.offset >= Bytes(0) && move.offset + size <= p_.capacity);
    RC_ASSERT(move.not_before <= position_);
    RC_ASSERT(move.not_before >= last_not_before_);
    last_not_before_ = move.not_before;
    for (const UnitIndex evicted : move.evicted) {
      RC_ASSERT(places_.contains(evicted.value()));
      RC_ASSERT(held_[evicted.value()] == 0);
      if (last_acquired_.contains(evicted.value()))
        RC_ASSERT(move.not_before > last_acquired_[evicted.value()]);
      places_.erase(evicted.value());
    }
    for (const auto& [other, place] : places_)
      RC_ASSERT(place.first >= move.offset + size || place.first + place.second <= move.offset);
    places_[move.unit.value()] = {move.offset, size};
    bytes_ += size;
  }

  const Problem& p_;
  const Schedule schedule_;
  std::map<uint32_t, std::pair<Bytes, Bytes>> places_;  // by unit: offset and size
  std::map<uint32_t, int> held_;
  std::map<uint32_t, size_t> last_acquired_;
  size_t position_ = 0;
  size_t next_ = 0;
  size_t last_not_before_ = 0;
  Bytes bytes_;
};

RC_GTEST_PROP(ScheduleTest, UniformUnitsAreThereWhenAcquiredAndNothingHeldIsOverwritten, ()) {
  const Problem problem = AnyProblem(true, 8, 40);
  Execution(problem).Run();
}

RC_GTEST_PROP(ScheduleTest, SoAreUnitsOfAnySize, ()) {
  const Problem problem = AnyProblem(false, 8, 40);
  Execution(problem).Run();
}

// The fewest moves that any schedule could make do with: every choice tried, over sets of units.
size_t FewestMoves(const Problem& p) {
  const size_t slots = static_cast<size_t>(p.capacity / KiB(4));
  std::map<uint32_t, size_t> costs;  // by set of resident units
  std::vector<int> held(p.unit_bytes.size(), 0);
  uint32_t start = 0;
  for (const Segment& s : p.segments) {
    if (!s.unit) continue;
    start |= 1u << s.unit->value();
    if (s.held) held[s.unit->value()] = 1;
  }
  costs[start] = 0;
  for (const TraceStep& step : p.trace) {
    const uint32_t unit = step.unit.value();
    if (!step.acquire) {
      held[unit] -= held[unit] > 0 ? 1 : 0;
      continue;
    }
    std::map<uint32_t, size_t> after;
    const auto offer = [&after](uint32_t set, size_t cost) {
      const auto [it, fresh] = after.try_emplace(set, cost);
      it->second = std::min(it->second, cost);
    };
    for (const auto& [set, cost] : costs) {
      if ((set >> unit & 1) != 0) {
        offer(set, cost);
        continue;
      }
      const uint32_t with = set | 1u << unit;
      if (static_cast<size_t>(std::popcount(with)) <= slots) offer(with, cost + 1);
      for (uint32_t v = 0; v < held.size(); ++v) {
        if ((set >> v & 1) != 0 && held[v] == 0) offer(with & ~(1u << v), cost + 1);
      }
    }
    costs = std::move(after);
    ++held[unit];
  }
  size_t fewest = kNever;
  for (const auto& [set, cost] : costs) fewest = std::min(fewest, cost);
  return fewest;
}

RC_GTEST_PROP(ScheduleTest, UniformUnitsMoveNoMoreThanTheyMust, ()) {
  const Problem problem = AnyProblem(true, 5, 24);
  const Schedule schedule = problem.Solve();
  RC_PRE(schedule.impossible.empty());
  RC_ASSERT(static_cast<size_t>(schedule.bytes / KiB(4)) == FewestMoves(problem));
}

RC_GTEST_PROP(ScheduleTest, UniformUnitsAreRefusedOnlyWhenAllIsHeld, ()) {
  const Problem problem = AnyProblem(true, 6, 30);
  const Schedule schedule = problem.Solve();
  std::map<uint32_t, int> held;
  for (const Segment& s : problem.segments) {
    if (s.unit && s.held) held[s.unit->value()] = 1;
  }
  size_t position = 0;
  for (const TraceStep& step : problem.trace) {
    int& count = held[step.unit.value()];
    if (!step.acquire) {
      count -= count > 0 ? 1 : 0;
    } else if (std::ranges::count(schedule.impossible, position++) == 0) {
      ++count;
    } else {
      const auto all = std::ranges::count_if(held, [](const auto& h) { return h.second > 0; });
      RC_ASSERT(Bytes(4096) * all == problem.capacity);
    }
  }
}

RC_GTEST_PROP(ScheduleTest, TheRestOfATraceIsScheduledLikeATraceOfItsOwn, ()) {
  Problem whole = AnyProblem(false, 6, 30);
  const auto acquisitions =
      static_cast<size_t>(std::ranges::count(whole.trace, true, &TraceStep::acquire));
  whole.first = *rc::gen::inRange<size_t>(0, acquisitions + 1);
  Problem rest = whole;
  rest.first = 0;
  size_t position = 0;
  std::erase_if(rest.trace, [&](const TraceStep& step) {
    return step.acquire ? position++ < whole.first : position < whole.first;
  });
  const Schedule a = whole.Solve();
  const Schedule b = rest.Solve();
  RC_ASSERT(a.moves.size() == b.moves.size());
  RC_ASSERT(a.bytes == b.bytes);
  for (size_t i = 0; i < a.moves.size(); ++i) {
    RC_ASSERT(a.moves[i].unit == b.moves[i].unit && a.moves[i].offset == b.moves[i].offset);
    RC_ASSERT(a.moves[i].needed_at == b.moves[i].needed_at + whole.first);
    RC_ASSERT(a.moves[i].not_before == b.moves[i].not_before + whole.first);
  }
}

// ---- By hand

Trace Forward(const std::vector<uint32_t>& units) {
  Trace trace;
  for (const uint32_t u : units) {
    trace.push_back({UnitIndex(u), true});
    trace.push_back({UnitIndex(u), false});
  }
  return trace;
}

TEST(ScheduleByHandTest, ForwardAndBackwardKeepWhatIsNeededSoonest) {
  const Trace trace = Forward({0, 1, 2, 3, 3, 2, 1, 0});
  const std::vector<Bytes> bytes(4, KiB(4));
  const Segment free{.unit = std::nullopt, .offset = Bytes(0), .size = KiB(8), .held = false};
  const Schedule schedule =
      MakeSchedule({.trace = &trace, .unit_bytes = bytes, .segments = {&free, 1}});
  std::vector<uint32_t> moved;
  for (const Move& move : schedule.moves) moved.push_back(move.unit.value());
  EXPECT_THAT(moved, ElementsAre(0, 1, 2, 3, 1, 0)) << "3 and 2 turn round in place";
  EXPECT_EQ(0u, schedule.moves[1].not_before) << "there is room for two";
  EXPECT_THAT(schedule.moves[2].evicted, ElementsAre(UnitIndex(0)));
  EXPECT_EQ(1u, schedule.moves[2].not_before) << "as soon as unit 0 has been used";
  EXPECT_EQ(2u, schedule.moves[2].needed_at);
}

TEST(ChooseWindowTest, PrefersFreeRoomThenTheFarthestUseThenTheFewestBytes) {
  const auto unit = [](uint32_t u, int64_t at, int64_t size, bool held = false) {
    return Segment{.unit = UnitIndex(u), .offset = Bytes(at), .size = Bytes(size), .held = held};
  };
  const auto choose = [](std::vector<Segment> segments, std::vector<size_t> next, int64_t bytes) {
    return ChooseWindow(segments, next, std::vector<size_t>(segments.size()), Bytes(bytes));
  };
  const Segment free{.unit = std::nullopt, .offset = Bytes(20), .size = Bytes(10), .held = false};
  const std::vector<Segment> segments = {unit(0, 0, 10), unit(1, 10, 10), free, unit(2, 30, 10)};
  auto window = choose(segments, {5, 9, kNever, 7}, 10);
  ASSERT_TRUE(window);
  EXPECT_EQ(2u, window->first) << "free";
  window = choose(segments, {5, 9, kNever, 7}, 20);
  ASSERT_TRUE(window);
  EXPECT_EQ(1u, window->first) << "unit 1 is used last, beside free room";
  EXPECT_EQ(3u, window->last);
  EXPECT_FALSE(choose(segments, {5, 9, kNever, 7}, 41));
  const std::vector<Segment> held = {unit(0, 0, 10), unit(1, 10, 10, true), unit(2, 20, 10)};
  EXPECT_FALSE(choose(held, {1, 2, 3}, 20)) << "nothing reaches across what is held";
}

// In backward, nothing that has been used is used again: what was used first makes room, so that
// the next unit comes ahead of its use.
TEST(ChooseWindowTest, OfWhatIsNeverUsedAgainTheFirstToBeFreeGoes) {
  std::vector<Segment> segments;
  for (uint32_t u = 0; u < 3; ++u)
    segments.push_back({.unit = UnitIndex(u), .offset = Bytes(10 * u), .size = Bytes(10)});
  const std::vector<size_t> never(3, kNever), free_from = {9, 7, 8};
  const auto window = ChooseWindow(segments, never, free_from, Bytes(10));
  ASSERT_TRUE(window);
  EXPECT_EQ(1u, window->first);
}

TEST(PlaceTest, WhatIsLeftOfTheWindowIsFree) {
  std::vector<Segment> segments = {
      {.unit = UnitIndex(0), .offset = Bytes(0), .size = Bytes(10), .held = false},
      {.unit = std::nullopt, .offset = Bytes(10), .size = Bytes(10), .held = false},
      {.unit = std::nullopt, .offset = Bytes(20), .size = Bytes(5), .held = true}};
  Place(&segments, {0, 2}, UnitIndex(7), Bytes(12));
  ASSERT_EQ(3u, segments.size());
  EXPECT_EQ(UnitIndex(7), segments[0].unit);
  EXPECT_EQ(Bytes(12), segments[0].size);
  EXPECT_EQ(std::nullopt, segments[1].unit);
  EXPECT_EQ(Bytes(8), segments[1].size);
  EXPECT_TRUE(segments[2].held) << "a leftover is not merged";
}

}  // namespace
}  // namespace sluice
