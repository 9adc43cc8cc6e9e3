// offload/run/grad_exchange.h
//
// Gradients among ranks: what this rank was given of a unit is collected in a staging buffer, laid
// out as the unit is; the ranks exchange their parts of it (an all-to-all), each adds up what came
// of its own shard (comm/ordered_reduce.h) and divides by the number of ranks, and hands the result
// to Gradients, as if it had been given so. Where gradients are not shared, the sums are gathered
// on all ranks first.
//
// A unit is reduced when every rank has said that it has it, or that it won't: a rank that has
// given its first gradient of an iteration says so of all units that it has not acquired in it. In
// a window, which ends when every rank has said that nothing more comes, a rank may also lack what
// it was to have, a unit or some tensors: then that is reduced when the window ends. Who lacks
// something adds zeros; what no rank has is not reduced. Which units are reduced and in which order
// follows from what was said alone, so it is the same on all ranks.
//
// Buffers: whatever collects may take any but the last; the reduction that is next takes that one
// if it has none. So what is collected early never keeps the next one from going on. While there is
// no buffer for what was given it waits for the other ranks; so a caller that waits for it must not
// keep another rank waiting by that.
//
// Threads: the control thread; copies and sums run on workers. Allocates when more is on its way
// than ever before.

#ifndef SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_
#define SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "core/ring_queue.h"
#include "offload/run/agreement.h"
#include "offload/run/context.h"
#include "offload/run/gradients.h"
#include "offload/run/updater.h"

namespace sluice {

class GradExchange {
 public:
  using Done = Gradients::Done;

  // None is owned. `acquisitions`: of the iteration that is under way, null if none is.
  GradExchange(const Context& context, Communicator* communicator, Agreement* agreement,
               Gradients* gradients, const Updater* updater,
               std::function<const std::vector<UnitIndex>*()> acquisitions);
  ~GradExchange();

  // This rank's gradient of the tensor, to be added to the others'; there when `fence` is complete.
  // `done` says that `data` is not read any more.
  void Give(TensorIndex tensor, ConstMemoryView data, const Fence* fence, Done done);
  // Whether a window may be ended here: the last one has ended everywhere.
  bool window_open() const { return !closed_; }
  // Nothing more comes in this window, which is open. `topic` says what is next: kWindowEnd, or
  // kStep, after which StepBegun comes before anything is given.
  void EndWindow(Topic topic);
  // Whether anything was given since the last window was ended here.
  bool window_begun() const { return window_begun_; }
  // Of kGradients, kNothing, kWindowEnd and kStep.
  void OnSaid(Rank rank, Said said);

  // All ranks have said kStep, and all that was given has reached Gradients.
  bool all_at_step() const { return step_agreed_ && settled(); }
  void StepBegun();
  // Nothing is on its way, and the windows that were ended here have ended everywhere.
  bool settled() const { return !closed_ && agreed_.empty() && under_way_ == 0; }
  bool idle() const { return settled() && waiting_ == 0; }

  // Whether this rank was given something of the tensor since it was last cleared.
  bool given(TensorIndex tensor) const { return given_[tensor.value()] != 0; }
  void Clear(TensorIndex tensor) { given_[tensor.value()] = 0; }
  void ClearAll() { given_.assign(given_.size(), 0); }

  // The unit's update has read the gradients before, which the next are not to replace earlier:
  // also where this rank was given none.
  void GoOn(UnitIndex unit);

  // Goes on with what waits for a fence, or for memory.
  void CollectMore();

  // The runtime has failed: what waits ends so.
  void Fail(const absl::Status& status);

 private:
  class CopyTask;
  class SumTask;
  class Reduction;
  struct Given {
    TensorIndex tensor;
    ConstMemoryView data;
    const Fence* fence = nullptr;
    Done done;
  };
  // What this rank has of a unit for one reduction: each tensor once at most.
  struct Group {
    std::vector<TensorIndex> tensors;
    bool said = false;
    RingQueue<Given> to_copy;
    size_t copying = 0;
    MemoryView staging;
  };
  struct Unit {
    uint32_t tensors = 0;       // that are updated
    uint32_t said = 0;          // ranks that have it, and to whom nothing is agreed
    uint32_t answered = 0;      // these, and ranks that won't have it or have ended the window
    bool acquired = false;      // while it is said what is not
    bool under_way = false;     // a reduction
    Reduction* held = nullptr;  // which has ended, till the update before has
    bool waits = false;         // is in collecting_
    RingQueue<Group*> groups;   // not begun; of these only the last may lack tensors, unsaid
  };
  struct Agreed {
    UnitIndex unit;
    bool here = false;  // this rank has said that it has it
  };
  // What a rank has said of a unit in this window: how many groups, which are not agreed on.
  struct Mark {
    uint16_t groups = 0;
    bool nothing = false;
  };
  enum Place : uint8_t { kInWindow, kAtEnd, kAtStep };

  Unit& At(UnitIndex unit) { return units_[unit.value()]; }
  Mark& MarkOf(UnitIndex unit, uint32_t rank) {
    return marks_[unit.value() * communicator_->ranks() + rank];
  }
  template <typename F>
  void Change(UnitIndex unit, uint32_t rank, F&& change);
  void Take(Given given);
  void SayWhatIsNothing();
  void Say(UnitIndex unit, Group* group);
  void Collect(UnitIndex index);
  void Copy(Group* group);
  void OnCopied(CopyTask* task);
  void Agree(UnitIndex unit);
  void OnEnded(uint32_t rank, bool for_step);
  void OnWindowEnded();
  void Pump();
  void Begin(const Agreed& agreed, MemoryView staging, MemoryView received);
  void OnExchanged(Reduction* reduction);
  void OnSummed(Reduction* reduction);
  void HandOn(Reduction* reduction);
  void End(Reduction* reduction, const absl::Status& status);
  void GiveBack(Reduction* reduction);
  MemoryView TakeStaging(bool last_one);
  template <typename T>
  static T* TakeFree(std::vector<T*>* free) {
    T* const one = free->back();
    free->pop_back();
    return one;
  }

  const Context context_;
  Communicator* const communicator_;
  Agreement* const agreement_;
  Gradients* const gradients_;
  const Updater* const updater_;
  const std::function<const std::vector<UnitIndex>*()> acquisitions_;
  const bool shared_;  // each rank keeps its shard's only
  const size_t under_way_max_;
  std::vector<Unit> units_;
  std::vector<uint8_t> given_;       // by tensor
  RingQueue<UnitIndex> collecting_;  // that wait for staging, or for a fence
  RingQueue<Given> next_window_;
  size_t waiting_ = 0;  // given, and not copied
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<Group*> free_groups_;
  std::vector<std::unique_ptr<CopyTask>> copies_;
  std::vector<CopyTask*> free_copies_;
  std::vector<std::unique_ptr<Reduction>> pool_;
  std::vector<Reduction*> free_reductions_;
  RingQueue<Agreed> agreed_;  // to be begun, in this order
  size_t under_way_ = 0;      // reductions
  bool window_begun_ = false;
  bool closed_ = false;   // ended here, and not yet by all
  bool at_step_ = false;  // said here
  bool step_agreed_ = false;
  std::vector<Mark> marks_;    // by unit and rank
  std::vector<Place> places_;  // by rank: what it has said of the window
  absl::Status failed_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_
