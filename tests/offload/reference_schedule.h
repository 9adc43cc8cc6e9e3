// tests/offload/reference_schedule.h
//
// A schedule as its definition says it: the whole trace replayed, every window of neighbours looked
// at for every move. What Planner must say, as slowly as you like.

#ifndef SLUICE_TESTS_OFFLOAD_REFERENCE_SCHEDULE_H_
#define SLUICE_TESTS_OFFLOAD_REFERENCE_SCHEDULE_H_

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core/types.h"
#include "offload/plan/trace.h"

namespace sluice::testing {

// What a cache holds at the start: tiles it, in order. A leftover is neither a unit's nor free.
struct Tile {
  std::optional<UnitIndex> unit;
  Bytes offset;
  Bytes size;
  bool held = false;  // of a unit: it is acquired
  bool leftover = false;
};

struct PlannedMove {
  UnitIndex unit;
  Bytes offset;
  std::vector<UnitIndex> evicted;
  size_t not_before = 0;
  size_t needed_at = 0;
};

struct PlannedMoves {
  std::vector<PlannedMove> moves;
  std::vector<size_t> impossible;  // acquisitions
};

class ReferenceSchedule {
 public:
  ReferenceSchedule(std::vector<Tile> tiles, std::vector<Bytes> unit_bytes)
      : tiles_(std::move(tiles)), bytes_(std::move(unit_bytes)), units_(bytes_.size()) {
    for (const Tile& tile : tiles_) {
      if (!tile.unit) continue;
      At(*tile.unit).resident = true;
      At(*tile.unit).held = tile.held ? 1 : 0;
    }
  }

  PlannedMoves Run(const Trace& trace) {
    for (const TraceStep& step : trace) {
      if (step.acquire) acquisitions_.push_back(step.unit);
    }
    for (const Tile& tile : tiles_) {
      if (tile.unit && !tile.held) NoteUnused(*tile.unit);
    }
    for (const TraceStep& step : trace) {
      if (step.acquire) {
        Acquire(step.unit);
        ++position_;
      } else {
        Unit& unit = At(step.unit);
        if (unit.held > 0 && --unit.held == 0) NoteUnused(step.unit);
      }
    }
    return std::move(result_);
  }

 private:
  static constexpr size_t kNever = std::numeric_limits<size_t>::max();
  struct Unit {
    bool resident = false;
    int held = 0;
    size_t free_from = 0;  // acquisitions after which its last use has begun
    size_t unused = 0;     // its turn, from 1, among those that neither are used nor were
  };
  struct Window {
    size_t first;
    size_t last;  // one more
    size_t nearest = kNever;
    size_t free_from = 0;
    size_t unused = 0;
    Bytes evicted;
    // Never used: by when all are free, then by whose turn it is. Else by the nearest next use.
    auto Badness() const {
      return std::tuple(kNever - nearest, free_from, nearest == kNever ? unused : 0, evicted);
    }
  };

  Unit& At(UnitIndex unit) { return units_[unit.value()]; }
  size_t NextUse(UnitIndex unit) const {
    for (size_t p = position_; p < acquisitions_.size(); ++p) {
      if (acquisitions_[p] == unit) return p;
    }
    return kNever;
  }
  void NoteUnused(UnitIndex unit) {
    if (At(unit).free_from == 0 && NextUse(unit) == kNever) At(unit).unused = ++unused_;
  }

  void Acquire(UnitIndex unit) {
    if (bytes_[unit.value()] == Bytes(0)) return;
    if (!At(unit).resident && !MoveIn(unit)) return result_.impossible.push_back(position_);
    ++At(unit).held;
    At(unit).free_from = position_ + 1;
  }

  bool MoveIn(UnitIndex unit) {
    const Bytes bytes = bytes_[unit.value()];
    std::optional<Window> best;
    for (size_t first = 0; first < tiles_.size(); ++first) {
      Window window{.first = first, .last = first};
      Bytes room;
      for (; window.last < tiles_.size() && room < bytes; ++window.last) {
        const Tile& tile = tiles_[window.last];
        if (tile.leftover || (tile.unit && At(*tile.unit).held > 0)) break;
        room += tile.size;
        if (!tile.unit) continue;
        window.nearest = std::min(window.nearest, NextUse(*tile.unit));
        window.free_from = std::max(window.free_from, At(*tile.unit).free_from);
        window.unused = std::max(window.unused, At(*tile.unit).unused);
        window.evicted += tile.size;
      }
      if (room >= bytes && (!best || window.Badness() < best->Badness())) best = window;
    }
    if (!best) return false;
    PlannedMove move{.unit = unit,
                     .offset = tiles_[best->first].offset,
                     .evicted = {},
                     .not_before = result_.moves.empty() ? 0 : result_.moves.back().not_before,
                     .needed_at = position_};
    for (size_t i = best->first; i < best->last; ++i) {
      if (!tiles_[i].unit) continue;
      move.evicted.push_back(*tiles_[i].unit);
      move.not_before = std::max(move.not_before, At(*tiles_[i].unit).free_from);
      At(*tiles_[i].unit).resident = false;
    }
    Place(*best, unit);
    At(unit).resident = true;
    result_.moves.push_back(std::move(move));
    return true;
  }

  void Place(const Window& window, UnitIndex unit) {
    const Bytes bytes = bytes_[unit.value()];
    const Bytes offset = tiles_[window.first].offset;
    const Bytes end = tiles_[window.last - 1].offset + tiles_[window.last - 1].size;
    std::vector<Tile> after(tiles_.begin(), tiles_.begin() + static_cast<ptrdiff_t>(window.first));
    after.push_back({.unit = unit, .offset = offset, .size = bytes});
    Tile rest{.unit = std::nullopt, .offset = offset + bytes, .size = end - offset - bytes};
    size_t next = window.last;
    for (; next < tiles_.size() && !tiles_[next].unit && !tiles_[next].leftover; ++next)
      rest.size += tiles_[next].size;
    if (rest.size > Bytes(0)) after.push_back(rest);
    after.insert(after.end(), tiles_.begin() + static_cast<ptrdiff_t>(next), tiles_.end());
    tiles_ = std::move(after);
  }

  std::vector<Tile> tiles_;
  const std::vector<Bytes> bytes_;
  std::vector<Unit> units_;
  std::vector<UnitIndex> acquisitions_;
  size_t position_ = 0;
  size_t unused_ = 0;
  PlannedMoves result_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_REFERENCE_SCHEDULE_H_
