// offload/run/ranks.h
//
// One rank among several: what it does together with the others. They agree on what comes next
// (Agreement); gradients are added up over ranks on their way in (GradExchange); parameters and
// values that each has a shard of are gathered (RankGathers, and UnitGathers for what is whole only
// while it is used); and at a step all get the same sums of squares and know which tensors any of
// them has a gradient of, so that norm, clipping, overflow and loss scale are the same everywhere.
//
// Threads: the control thread, except the figures of communication.

#ifndef SLUICE_OFFLOAD_RUN_RANKS_H_
#define SLUICE_OFFLOAD_RUN_RANKS_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "offload/run/agreement.h"
#include "offload/run/grad_exchange.h"
#include "offload/run/rank_gathers.h"
#include "offload/run/rank_links.h"
#include "offload/run/unit_gathers.h"
#include "offload/run/votes.h"

namespace sluice {

// What must be the same on all ranks: in words, and a number, or a hash, of it.
std::vector<std::pair<std::string, uint32_t>> FingerprintsOf(const ModelLayout& layout,
                                                             const Placement& placement,
                                                             const UpdateRule& rule);

class Ranks final : private Agreement::Observer, private Event {
 public:
  // `renewed` hears of every unit whose parameters are the same on all ranks again. What other
  // ranks' callers must come to is waited for as long as `patience`: then this rank fails, with the
  // names of those that are missing.
  Ranks(const Context& context, RankLinks links, Gradients* gradients, GradExchange::Asks asks,
        std::function<void(UnitIndex)> renewed, Nanos patience);
  ~Ranks() override;

  GradExchange* gradients() { return &exchange_; }
  RankGathers* gathers() { return &gathers_; }
  UnitGathers* units() { return &units_; }
  Votes* votes() { return &votes_; }

  // Call at each turn of the loop; the next is due at NextTime. `caller_waits`: for something that
  // can't begin yet.
  void Poll(bool caller_waits);
  TimePoint NextTime() const { return std::min(agreement_.NextTime(), units_.NextTime()); }

  // A step, in three parts, each begun when the one before is done: all ranks have come to it, and
  // all gradients have reached Gradients; then, of what those say, sums and presence are exchanged.
  // `step`: a hash of what must be the same on all; `acquired`: whether the unit is so here.
  void Meet(Topic topic, uint32_t index = 0) { exchange_.EndWindow({topic, index}); }
  bool met() const { return exchange_.met(); }
  void ExchangeSums(uint64_t step, const std::function<bool(UnitIndex)>& acquired);
  bool sums_exchanged() const { return sums_exchanged_; }
  void MeetingOver();
  // After the exchange: whether any rank has a gradient of the tensor.
  bool present(TensorIndex tensor) const { return (present_[tensor.value()] & kGiven) != 0; }
  // What keeps all ranks from this step, whose gradients stay. Errors: FailedPrecondition if ranks
  // disagree on it, or if one has acquired a unit that is to be updated.
  absl::Status CheckStep() const;

  bool idle() const;  // nothing is asked for, or on its way
  // The runtime has failed, and so have the others, who are told why.
  void Fail(const absl::Status& status, const absl::Status& why);
  // Leaves the group, within some seconds.
  absl::Status Close();
  bool memory_lost() const { return memory_lost_; }  // since Close: CommOp::memory_lost

  uint32_t ranks() const { return links_.agreement->ranks(); }
  Rank rank() const { return links_.agreement->rank(); }
  const RankLinks& links() const { return links_; }  // for the report

 private:
  enum Flags : uint8_t { kGiven = 1, kAcquired = 2 };  // of a tensor, and of its unit

  // What lies in host memory goes over it; null: over the others, as all does.
  Communicator* HostLink() const {
    return context_.placement->hbm_in_place ? nullptr : links_.values.get();
  }
  void OnSaid(Rank rank, Said said) override;
  void OnFingerprint(Rank rank, uint32_t value);
  void CheckForDeadlock(Rank rank, Said said);
  void OnDisagreement(const absl::Status& status) override;
  void CheckPatience(bool caller_waits);
  void Handle() override;  // sums have come
  // f(first cell, cells): those of the rank's shards, in order.
  template <typename F>
  void ForCells(Rank rank, F&& f) const;
  size_t WordsOfFlags() const { return (present_.size() + sizeof(double) - 1) / sizeof(double); }
  const double* StepIn(uint32_t rank) const {
    return messages_[rank].data() + messages_[rank].size() - WordsOfFlags() - 1;
  }
  const uint8_t* FlagsIn(uint32_t rank) const {
    return reinterpret_cast<const uint8_t*>(StepIn(rank) + 1);
  }

  const Context context_;
  const Nanos patience_;
  RankLinks links_;
  Gradients* const of_gradients_;
  const std::vector<std::pair<std::string, uint32_t>> fingerprints_;
  std::vector<size_t> compared_;  // by rank: how many of these
  Agreement agreement_;
  GradExchange exchange_;
  LaunchOrder order_;  // of what `gathers` carries
  RankGathers gathers_;
  UnitGathers units_;
  Votes votes_;
  std::vector<uint8_t> present_;  // by tensor: flags of all ranks
  bool sums_exchanged_ = false;
  bool exchanging_ = false;
  // By rank: sums of its cells, then the step's hash, then the tensors' flags.
  std::vector<std::vector<double>> messages_;
  ConstMemoryView send_;
  std::vector<MemoryView> receive_;
  const std::vector<uint32_t> ends_;
  CommOp op_;
  uint64_t progress_ = 0;  // of what waits for other ranks
  TimePoint since_;        // nothing waits longer
  bool memory_lost_ = false;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANKS_H_
