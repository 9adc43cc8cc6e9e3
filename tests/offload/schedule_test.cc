#include "offload/plan/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/status.h"
#include "tests/offload/reference_schedule.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using testing::PlannedMove;
using testing::PlannedMoves;
using testing::ReferenceSchedule;
using testing::Tile;

constexpr size_t kNever = std::numeric_limits<size_t>::max();

// A cache, what lies in it, and a trace in which units are held for a while.
struct Problem {
  Trace trace;
  size_t happened = 0;             // acquisitions of the trace
  Trace next;                      // follows it
  std::vector<UnitIndex> waiting;  // comes before it
  std::vector<Bytes> unit_bytes;
  std::vector<Tile> tiles;
  Bytes capacity;

  // All that is ahead, as one trace.
  Trace Ahead() const {
    Trace ahead;
    for (const UnitIndex unit : waiting) ahead.push_back({unit, true});
    size_t passed = 0;
    for (const TraceStep& step : trace) {
      const bool past = step.acquire ? passed++ < happened : passed < happened;
      if (!past) ahead.push_back(step);
    }
    ahead.insert(ahead.end(), next.begin(), next.end());
    return ahead;
  }
  SegmentList Segments() const {
    SegmentList list(capacity);
    std::vector<SegmentList::Place> free;
    SegmentList::Place rest = list.first();
    for (const Tile& tile : tiles) {
      const SegmentList::Place place =
          list.Put(rest, rest, tile.unit.value_or(UnitIndex(0)), tile.size);
      rest = list.at(place).after;
      if (tile.leftover) list.Leave(place);
      if (!tile.unit && !tile.leftover) free.push_back(place);
    }
    for (const SegmentList::Place place : free) list.Free(place);
    return list;
  }
  bool Held(UnitIndex unit) const {
    return std::ranges::any_of(tiles, [&](const Tile& t) { return t.unit == unit && t.held; });
  }
  PlannedMoves Solve(Planner* planner) const {
    const IndexedTrace indexed(trace);
    const IndexedTrace indexed_next(next);
    planner->Begin(
        {.waiting = waiting, .trace = &indexed, .happened = happened, .next = &indexed_next},
        Segments(), [this](UnitIndex unit) { return Held(unit); });
    PlannedMoves planned;
    for (; const Move* move = planner->Next(); planner->Pop()) {
      if (!move->possible) {
        planned.impossible.push_back(move->needed_at);
        continue;
      }
      const auto evicted = planner->evicted();
      planned.moves.push_back({.unit = move->unit,
                               .offset = move->offset,
                               .evicted = {evicted.begin(), evicted.end()},
                               .not_before = move->not_before,
                               .needed_at = move->needed_at});
    }
    planner->Clear();
    return planned;
  }
  PlannedMoves Solve() const {
    Planner planner(unit_bytes);
    return Solve(&planner);
  }
};

// Free neighbours are one tile.
void AddTile(std::vector<Tile>* tiles, const Tile& tile) {
  const auto free = [](const Tile& t) { return !t.unit && !t.leftover; };
  if (!tiles->empty() && free(tiles->back()) && free(tile)) {
    tiles->back().size += tile.size;
  } else {
    tiles->push_back(tile);
  }
}

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
  const auto go_on = [&](size_t steps) {
    Trace trace;
    for (size_t i = 0; i < steps; ++i) {
      if (!held.empty() && *rc::gen::inRange(0, 2) == 0) {
        const auto which = *rc::gen::inRange<size_t>(0, held.size());
        trace.push_back({UnitIndex(held[which]), false});
        held.erase(held.begin() + static_cast<ptrdiff_t>(which));
      } else {
        held.push_back(*rc::gen::inRange<uint32_t>(0, static_cast<uint32_t>(units)));
        trace.push_back({UnitIndex(held.back()), true});
      }
    }
    return trace;
  };
  p.trace = go_on(*rc::gen::inRange<size_t>(0, steps_max));
  if (*rc::gen::arbitrary<bool>()) p.next = go_on(*rc::gen::inRange<size_t>(0, steps_max));
  // Some units are there already, one after another, some of them held, or not theirs any more.
  Bytes used;
  for (uint32_t u = 0; u < units; ++u) {
    const Bytes bytes = p.unit_bytes[u];
    if (bytes == Bytes(0) || used + bytes > p.capacity || *rc::gen::inRange(0, 2) == 0) continue;
    Tile tile{.unit = UnitIndex(u), .offset = used, .size = bytes};
    tile.held = *rc::gen::inRange(0, 4) == 0;
    const bool gone = !uniform && *rc::gen::inRange(0, 4) == 0;
    if (gone) tile = {{}, used, bytes, false, *rc::gen::arbitrary<bool>()};
    AddTile(&p.tiles, tile);
    used += bytes;
  }
  if (p.capacity > used)
    AddTile(&p.tiles, {.unit = std::nullopt, .offset = used, .size = p.capacity - used});
  return p;
}

// The same, begun in the middle: some acquisitions have happened, and some are waited for.
Problem AnyProblemUnderWay(size_t units_max, size_t steps_max) {
  Problem p = AnyProblem(false, units_max, steps_max);
  const auto acquisitions =
      static_cast<size_t>(std::ranges::count(p.trace, true, &TraceStep::acquire));
  p.happened = *rc::gen::inRange<size_t>(0, acquisitions + 1);
  for (uint32_t u = 0; u < p.unit_bytes.size(); ++u) {
    const bool there =
        std::ranges::any_of(p.tiles, [&](const Tile& t) { return t.unit == UnitIndex(u); });
    if (!there && *rc::gen::inRange(0, 3) == 0) p.waiting.push_back(UnitIndex(u));
  }
  return p;
}

// Carries out a schedule step by step, each move as late as it may, and checks that it may.
class Execution {
 public:
  explicit Execution(const Problem& problem) : p_(problem), schedule_(problem.Solve()) {
    for (const Tile& s : p_.tiles) {
      if (s.leftover) leftovers_.emplace_back(s.offset, s.size);
      if (!s.unit) continue;
      places_[s.unit->value()] = {s.offset, s.size};
      if (s.held) held_[s.unit->value()] = 1;
    }
  }

  void Run() {
    for (const TraceStep& step : p_.Ahead()) {
      if (p_.unit_bytes[step.unit.value()] == Bytes(0)) {
        position_ += step.acquire ? 1 : 0;
      } else if (step.acquire) {
        Acquire(step.unit.value());
      } else if (held_[step.unit.value()] > 0) {
        --held_[step.unit.value()];
      }
    }
    RC_ASSERT(next_ == schedule_.moves.size());
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

  void Carry(const PlannedMove& move) {
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
    const auto apart = [&](const std::pair<Bytes, Bytes>& place) {
      return place.first >= move.offset + size || place.first + place.second <= move.offset;
    };
    for (const auto& [other, place] : places_) RC_ASSERT(apart(place));
    for (const auto& place : leftovers_) RC_ASSERT(apart(place));
    places_[move.unit.value()] = {move.offset, size};
  }

  const Problem& p_;
  const PlannedMoves schedule_;
  std::map<uint32_t, std::pair<Bytes, Bytes>> places_;  // by unit: offset and size
  std::map<uint32_t, int> held_;
  std::map<uint32_t, size_t> last_acquired_;
  size_t position_ = 0;
  size_t next_ = 0;
  size_t last_not_before_ = 0;
  std::vector<std::pair<Bytes, Bytes>> leftovers_;
};

RC_GTEST_PROP(ScheduleTest, UniformUnitsAreThereWhenAcquiredAndNothingHeldIsOverwritten, ()) {
  const Problem problem = AnyProblem(true, 8, 40);
  Execution(problem).Run();
}

RC_GTEST_PROP(ScheduleTest, SoAreUnitsOfAnySize, ()) {
  const Problem problem = AnyProblemUnderWay(8, 40);
  Execution(problem).Run();
}

bool Same(const PlannedMoves& a, const PlannedMoves& b) {
  return a.impossible == b.impossible &&
         std::ranges::equal(a.moves, b.moves, [](const PlannedMove& x, const PlannedMove& y) {
           return x.unit == y.unit && x.offset == y.offset && x.evicted == y.evicted &&
                  x.not_before == y.not_before && x.needed_at == y.needed_at;
         });
}

// So it moves no more bytes than trying every window would.
RC_GTEST_PROP(ScheduleTest, EveryMoveIsTheOneThatTheDefinitionChooses, ()) {
  const Problem problem = AnyProblemUnderWay(20, 120);
  RC_ASSERT(Same(problem.Solve(),
                 ReferenceSchedule(problem.tiles, problem.unit_bytes).Run(problem.Ahead())));
}

// Whatever was planned before, and however far.
RC_GTEST_PROP(ScheduleTest, APlanDoesNotDependOnTheOneBefore, ()) {
  const Problem problem = AnyProblemUnderWay(8, 40);
  Planner planner(problem.unit_bytes);
  const IndexedTrace other(problem.next);
  planner.Begin({.trace = &other}, SegmentList(problem.capacity), [](UnitIndex) { return false; });
  for (auto moves = *rc::gen::inRange(0, 8); moves > 0 && planner.Next() != nullptr; --moves)
    planner.Pop();
  RC_ASSERT(Same(problem.Solve(&planner), problem.Solve()));
}

// The fewest moves that any schedule could make do with: every choice tried, over sets of units.
size_t FewestMoves(const Problem& p) {
  const size_t slots = static_cast<size_t>(p.capacity / KiB(4));
  std::map<uint32_t, size_t> costs;  // by set of resident units
  std::vector<int> held(p.unit_bytes.size(), 0);
  uint32_t start = 0;
  for (const Tile& s : p.tiles) {
    if (!s.unit) continue;
    start |= 1u << s.unit->value();
    if (s.held) held[s.unit->value()] = 1;
  }
  costs[start] = 0;
  for (const TraceStep& step : p.Ahead()) {
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
  const PlannedMoves schedule = problem.Solve();
  RC_PRE(schedule.impossible.empty());
  RC_ASSERT(schedule.moves.size() == FewestMoves(problem));
}

RC_GTEST_PROP(ScheduleTest, UniformUnitsAreRefusedOnlyWhenAllIsHeld, ()) {
  const Problem problem = AnyProblem(true, 6, 30);
  const PlannedMoves schedule = problem.Solve();
  std::map<uint32_t, int> held;
  for (const Tile& s : problem.tiles) {
    if (s.unit && s.held) held[s.unit->value()] = 1;
  }
  size_t position = 0;
  for (const TraceStep& step : problem.Ahead()) {
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

// ---- By hand

Trace Forward(const std::vector<uint32_t>& units) {
  Trace trace;
  for (const uint32_t u : units) {
    trace.push_back({UnitIndex(u), true});
    trace.push_back({UnitIndex(u), false});
  }
  return trace;
}

// Of a cache that holds `tiles`, one after another.
PlannedMoves Solve(const std::vector<uint32_t>& order, std::vector<Bytes> unit_bytes,
                   std::vector<Tile> tiles) {
  Problem p{.trace = Forward(order), .unit_bytes = std::move(unit_bytes)};
  for (Tile& tile : tiles) tile.offset = std::exchange(p.capacity, p.capacity + tile.size);
  p.tiles = std::move(tiles);
  return p.Solve();
}

TEST(ScheduleByHandTest, ForwardAndBackwardKeepWhatIsNeededSoonest) {
  const PlannedMoves schedule =
      Solve({0, 1, 2, 3, 3, 2, 1, 0}, std::vector<Bytes>(4, KiB(4)), {{.size = KiB(8)}});
  std::vector<uint32_t> moved;
  for (const PlannedMove& move : schedule.moves) moved.push_back(move.unit.value());
  EXPECT_THAT(moved, ElementsAre(0, 1, 2, 3, 1, 0)) << "3 and 2 turn round in place";
  EXPECT_EQ(0u, schedule.moves[1].not_before) << "there is room for two";
  EXPECT_THAT(schedule.moves[2].evicted, ElementsAre(UnitIndex(0)));
  EXPECT_EQ(1u, schedule.moves[2].not_before) << "as soon as unit 0 has been used";
  EXPECT_EQ(2u, schedule.moves[2].needed_at);
}

TEST(ScheduleByHandTest, FreeRoomGoesBeforeTheFarthestUse) {
  const auto solve = [](int64_t bytes, bool held) {
    return Solve({3, 0, 2, 1}, {Bytes(10), Bytes(10), Bytes(10), Bytes(bytes)},
                 {{.unit = UnitIndex(0), .size = Bytes(10)},
                  {.unit = UnitIndex(1), .size = Bytes(10), .held = held},
                  {.size = Bytes(10)},
                  {.unit = UnitIndex(2), .size = Bytes(10)}});
  };
  EXPECT_EQ(solve(10, false).moves.front().offset, Bytes(20)) << "free";
  EXPECT_EQ(solve(20, false).moves.front().offset, Bytes(10))
      << "unit 1 is used last, beside free room";
  EXPECT_THAT(solve(41, false).impossible, ElementsAre(0u));
  EXPECT_EQ(solve(20, true).moves.front().offset, Bytes(20))
      << "nothing reaches across what is held";
}

// In backward, nothing that has been used is used again: what was used first makes room, so that
// the next unit comes ahead of its use.
TEST(ScheduleByHandTest, OfWhatIsNeverUsedAgainTheFirstToBeFreeGoes) {
  const PlannedMoves schedule = Solve({1, 2, 0, 3}, std::vector<Bytes>(4, Bytes(10)),
                                      {{.unit = UnitIndex(0), .size = Bytes(10)},
                                       {.unit = UnitIndex(1), .size = Bytes(10)},
                                       {.unit = UnitIndex(2), .size = Bytes(10)}});
  ASSERT_EQ(schedule.moves.size(), 1u);
  EXPECT_EQ(schedule.moves[0].offset, Bytes(10));
  EXPECT_EQ(schedule.moves[0].not_before, 1u);
}

}  // namespace
}  // namespace sluice
