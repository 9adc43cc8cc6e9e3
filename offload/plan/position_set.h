// offload/plan/position_set.h
//
// A set of positions below a limit, as bits in words, with a bit for each word that has any, and so
// on upwards: every call takes a handful of steps whatever the limit. Reset allocates if the limit
// is larger than ever before.

#ifndef SLUICE_OFFLOAD_PLAN_POSITION_SET_H_
#define SLUICE_OFFLOAD_PLAN_POSITION_SET_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace sluice {

class PositionSet {
 public:
  static constexpr size_t kNone = std::numeric_limits<size_t>::max();

  // The empty set of positions below `limit`.
  void Reset(size_t limit) {
    size_t words = limit;
    for (std::vector<uint64_t>& level : levels_) {
      words = words / 64 + 1;
      level.assign(words, 0);
    }
  }
  void Insert(size_t position) {
    for (std::vector<uint64_t>& level : levels_) {
      uint64_t& word = level[position / 64];
      const bool had = word != 0;
      word |= uint64_t{1} << position % 64;
      if (had) return;
      position /= 64;
    }
  }
  void Erase(size_t position) {
    for (std::vector<uint64_t>& level : levels_) {
      uint64_t& word = level[position / 64];
      word &= ~(uint64_t{1} << position % 64);
      if (word != 0) return;
      position /= 64;
    }
  }
  // The least position at or above `from`.
  size_t AtOrAfter(size_t from) const {
    size_t level = 0;
    for (; level < levels_.size(); ++level) {
      if (from / 64 >= levels_[level].size()) return kNone;
      const uint64_t rest = levels_[level][from / 64] & ~uint64_t{0} << from % 64;
      if (rest != 0) {
        from = from / 64 * 64 + static_cast<size_t>(std::countr_zero(rest));
        break;
      }
      from = from / 64 + 1;
    }
    if (level == levels_.size()) return kNone;
    while (level-- > 0)
      from = from * 64 + static_cast<size_t>(std::countr_zero(levels_[level][from]));
    return from;
  }
  // The greatest position below `end`.
  size_t Before(size_t end) const {
    size_t level = 0;
    for (; level < levels_.size(); ++level) {
      if (end == 0) return kNone;
      const size_t last = end - 1;
      const uint64_t rest = levels_[level][last / 64] & ~uint64_t{0} >> (63 - last % 64);
      end = last / 64;
      if (rest != 0) {
        end = end * 64 + 63 - static_cast<size_t>(std::countl_zero(rest));
        break;
      }
    }
    if (level == levels_.size()) return kNone;
    while (level-- > 0)
      end = end * 64 + 63 - static_cast<size_t>(std::countl_zero(levels_[level][end]));
    return end;
  }

 private:
  std::array<std::vector<uint64_t>, 6> levels_;  // 64^6 positions
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_POSITION_SET_H_
