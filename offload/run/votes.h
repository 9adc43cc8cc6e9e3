// offload/run/votes.h
//
// Ranks that must all succeed at the same thing, or none: each says how it fared at what, and hears
// how all did. The n-th votes of all ranks belong together.
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
  struct Verdict {
    std::vector<uint32_t> failed{};     // ranks, in order
    std::vector<uint32_t> elsewhere{};  // those that are about another thing than this one
    bool ok() const { return failed.empty() && elsewhere.empty(); }
  };
  using Counted = std::function<void(const Verdict&)>;

  Votes(Agreement* agreement, Rank own, uint32_t ranks)
      : agreement_(agreement), own_(own), said_(ranks) {}

  // One at a time. `what`: a hash of what it is about; of 31 bits.
  void Cast(bool succeeded, uint64_t what, Counted counted);
  // This rank has not failed, but is not done either: the others wait on.
  void GoesOn() { agreement_->Say({Topic::kGoesOn, 0}); }
  void OnSaid(Rank rank, Said said);
  // The runtime has failed: nothing is counted any more.
  void Drop() { counted_ = nullptr; }

  bool idle() const { return counted_ == nullptr; }
  bool awaits() const { return counted_ != nullptr; }
  uint64_t progress() const { return progress_; }  // grows while others go on
  RankWait Awaited() const;

 private:
  void Count();

  Agreement* const agreement_;
  const Rank own_;
  std::vector<std::deque<uint32_t>> said_;  // by rank: 2 what + succeeded; not counted yet
  uint64_t progress_ = 0;
  Counted counted_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_VOTES_H_
