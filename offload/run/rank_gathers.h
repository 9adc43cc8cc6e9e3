// offload/run/rank_gathers.h
//
// What each rank has renewed or read of its shards, brought to all: parameters of units that are
// whole on every rank, after an update or a write of values; and whole tensors that were read shard
// by shard. In place, in the order in which all ranks have agreed. What lies in host memory goes
// over a communicator of its own, where there is one.
//
// Threads: the control thread. Allocates at construction, per gather of values, and when more units
// are renewed at a time than ever before, beyond sixteen.

#ifndef SLUICE_OFFLOAD_RUN_RANK_GATHERS_H_
#define SLUICE_OFFLOAD_RUN_RANK_GATHERS_H_

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "offload/run/agreement.h"
#include "offload/run/context.h"
#include "offload/run/launch_order.h"
#include "offload/run/rank_links.h"

namespace sluice {

class RankGathers {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // None is owned. `order` is of all that `communicator` carries; `host`, which may be null,
  // carries nothing that is agreed on but this. `renewed` hears of every unit whose parameters are
  // the same on all ranks again.
  RankGathers(const Context& context, Communicator* communicator, LaunchOrder* order,
              Communicator* host, Agreement* agreement, std::function<void(UnitIndex)> renewed);
  ~RankGathers();

  // This rank's shard of the unit's parameters is new. Not again before `renewed`. Where the unit
  // is not whole on every rank, nothing is gathered: all the same its shards are new everywhere
  // then.
  void Renew(UnitIndex unit);
  bool renewing() const { return renewals_ > 0; }

  // Where ranks share parameters, values are accessed when all ranks have come to that, so that
  // none needs what is about to change.
  void ComeToAccess();
  bool all_at_access() const;

  // `data`, after a read in host memory, after a write the unit's home, holds this rank's part of
  // the tensor's elements, of `element` bytes each, at its place; `done` is called when it holds
  // all. Every rank asks for the same, in the same order. With elements of 0 bytes nothing moves:
  // all have come to it.
  enum class After : uint8_t { kRead, kWrite };
  void Complete(TensorIndex tensor, After after, std::byte* data, int64_t element, Done done);

  // Of kParams, kValue and kAccess.
  void OnSaid(Rank rank, Said said);
  // The first value that another has asked for and the rank has not, in words: "reads tensor 'x'".
  std::string MissedBy(Rank rank) const;
  bool idle() const { return under_way_ == 0; }

  bool awaits() const { return !values_.empty() || renewals_ > 0 || !all_at_access(); }
  // Grows when something that waited goes on.
  uint64_t progress() const { return values_begun_ + come_to_ + renewed_units_; }
  RankWait Awaited() const;
  void Fail(const absl::Status& status);

 private:
  class Gather;
  struct Value {
    TensorIndex tensor;
    After after;
    std::byte* data;
    int64_t element;
    Done done;
  };

  Gather* Take();
  // `in_host`: what is gathered lies in host memory, on every rank (Ranks: fingerprints).
  void Launch(Gather* gather, bool in_host);
  bool HomeInHost(UnitIndex unit) const {
    return context_.placement->param_home[unit.value()] != Tier::kHbm;
  }
  void OnParams(UnitIndex unit);
  void OnValue(Rank rank, uint32_t index);
  std::string InWords(uint32_t index) const;
  void StartValue();
  void End(Gather* gather);

  const Context context_;
  Communicator* const communicator_;
  LaunchOrder* const order_;
  Communicator* const host_;  // or null
  Agreement* const agreement_;
  const std::function<void(UnitIndex)> renewed_;
  std::vector<uint32_t> said_;      // by unit: ranks whose part is new
  size_t renewals_ = 0;             // that this rank has asked for
  std::deque<Value> values_;        // of this rank, not begun
  std::deque<uint32_t> asked_;      // by any rank, and not begun: what was said
  std::vector<uint64_t> asked_by_;  // by rank: how many so far
  uint64_t values_begun_ = 0;
  uint64_t renewed_units_ = 0;
  std::vector<uint64_t> renewed_by_;  // by rank: parts of units
  uint64_t come_to_ = 0;              // accesses, of this rank
  std::vector<uint64_t> accesses_;    // by rank: how many it has come to
  size_t under_way_ = 0;              // that this rank waits for
  std::vector<std::unique_ptr<Gather>> gathers_;
  std::vector<Gather*> free_gathers_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANK_GATHERS_H_
