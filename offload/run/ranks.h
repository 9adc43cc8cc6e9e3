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
#include <vector>

#include "comm/communicator.h"
#include "offload/run/agreement.h"
#include "offload/run/grad_exchange.h"
#include "offload/run/rank_gathers.h"
#include "offload/run/rank_links.h"
#include "offload/run/unit_gathers.h"

namespace sluice {

// Of what must be the same on all ranks.
uint32_t FingerprintOf(const ModelLayout& layout);

class Ranks final : private Agreement::Observer, private Event {
 public:
  // `acquisitions` says what was acquired in the iteration that is under way, if one is; `renewed`
  // hears of every unit whose parameters are the same on all ranks again.
  Ranks(const Context& context, RankLinks links, Gradients* gradients, const Updater* updater,
        std::function<const std::vector<UnitIndex>*()> acquisitions,
        std::function<void(UnitIndex)> renewed);
  ~Ranks() override;

  GradExchange* gradients() { return &exchange_; }
  RankGathers* gathers() { return &gathers_; }
  UnitGathers* units() { return &units_; }

  // Call at each turn of the loop; the next is due at NextTime.
  void Poll();
  TimePoint NextTime() const { return std::min(agreement_.NextTime(), units_.NextTime()); }

  // A step, in three parts, each begun when the one before is done: all ranks have come to it, and
  // all gradients have reached Gradients; then, of what those say, sums and presence are exchanged.
  void MeetForStep();
  bool met() const { return exchange_.all_at_step(); }
  void ExchangeSums();
  bool sums_exchanged() const { return sums_exchanged_; }
  void StepBegun();
  // After that: whether any rank has a gradient of the tensor.
  bool present(TensorIndex tensor) const { return present_[tensor.value()] != 0; }

  bool idle() const;  // nothing is asked for, or on its way
  // Nothing that this rank has enqueued is under way.
  bool settled() const;
  // The runtime has failed: so have the others.
  void Fail(const absl::Status& status);
  // Leaves the group.
  absl::Status Close();

  uint32_t ranks() const { return links_.agreement->ranks(); }
  Rank rank() const { return links_.agreement->rank(); }
  const RankLinks& links() const { return links_; }  // for the report

 private:
  void OnSaid(Rank rank, Said said) override;
  void OnDisagreement(const absl::Status& status, bool wanted) override;
  void Handle() override;  // sums have come
  // f(first cell, cells): those of the rank's shards, in order.
  template <typename F>
  void ForCells(Rank rank, F&& f) const;

  const Context context_;
  RankLinks links_;
  Gradients* const of_gradients_;
  const uint32_t fingerprint_;
  Agreement agreement_;
  GradExchange exchange_;
  LaunchOrder order_;  // of what `gathers` carries
  RankGathers gathers_;
  UnitGathers units_;
  std::vector<uint8_t> present_;  // by tensor
  bool sums_exchanged_ = false;
  bool exchanging_ = false;
  std::vector<std::vector<double>> messages_;  // by rank: sums of its cells, then what it was given
  ConstMemoryView send_;
  std::vector<MemoryView> receive_;
  const std::vector<uint32_t> ends_;
  CommOp op_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANKS_H_
