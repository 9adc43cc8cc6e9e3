// offload/run/votes.h
//
// Ranks that must all succeed, or none: each says how it fared, and hears how all did. The n-th
// votes of all ranks belong together.
//
// Threads: the control thread. Allocates.

#ifndef SLUICE_OFFLOAD_RUN_VOTES_H_
#define SLUICE_OFFLOAD_RUN_VOTES_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "comm/rank.h"
#include "offload/run/agreement.h"
#include "offload/run/rank_links.h"

namespace sluice {

class Votes {
 public:
  // The ranks that did not succeed, in order; none: all have.
  using Counted = std::function<void(const std::vector<uint32_t>& failed)>;

  Votes(Agreement* agreement, uint32_t ranks) : agreement_(agreement), said_(ranks) {}

  // One at a time. `first`: of several about one thing; that all come to it is for their callers.
  void Cast(bool succeeded, bool first, Counted counted);
  void OnSaid(Rank rank, Said said);
  // The runtime has failed: nothing is counted any more.
  void Drop() { counted_ = nullptr; }

  bool idle() const { return counted_ == nullptr; }
  bool awaits() const { return counted_ != nullptr && first_; }
  RankWait Awaited() const;

 private:
  void Count();

  Agreement* const agreement_;
  std::vector<std::deque<bool>> said_;  // by rank: whether it succeeded; not counted yet
  Counted counted_;
  bool first_ = false;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_VOTES_H_
