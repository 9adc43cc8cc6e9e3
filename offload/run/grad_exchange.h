// offload/run/grad_exchange.h
//
// Gradients among ranks: what this rank was given of a unit is collected in a staging buffer, laid
// out as the unit is; the ranks exchange their parts of it (an all-to-all), each adds up what came
// of its own shard (comm/ordered_reduce.h) and divides by the number of ranks, and hands the result
// to Gradients, as if it had been given so. Where gradients are not shared, the sums are gathered
// on all ranks first.
//
// In the library's mode (ReductionMode) a reduce-scatter of the communicator's brings each rank the
// sum of its shard, in place, and what is left is to divide it. The rest is the same: sums are made
// once and then gathered, so all ranks have the same bits whatever the library's are.
//
// A unit is reduced when every rank has said that it has it, or that it won't: a rank that has
// given its first gradient of an iteration says so of all units that it has not acquired in it. In
// a window, which ends when every rank has said that nothing more comes, a rank may also lack what
// it was to have, a unit or some tensors: then that is reduced when the window ends. Who lacks
// something adds zeros; what no rank has is not reduced. A unit that a rank has again in a window,
// once all its tensors were given, is another reduction: what it has of it for the k-th time is
// added to what others have for the k-th time. Which units are reduced and in which order, and what
// goes into each, follows from what was said alone, so it is the same on all ranks, and does not
// depend on who is ahead.
//
// A meeting is where every rank must come before any goes on, whatever windows it has ended until
// then: a step, the forgetting of gradients, a look at one. Ranks that come to different ones, of
// which none could end, fail.
//
// Buffers: whatever collects may take any but the last; the reduction that is next takes that one
// if it has none. So what is collected early never keeps the next one from going on. While there is
// no buffer for what was given it waits for the other ranks; so a caller that waits for it must not
// keep another rank waiting by that.
//
// Where HBM is in place workers copy and add. Elsewhere all of it happens in HBM, on the device's
// streams: what was given is copied there, exchanged there, added up there, and what this rank
// keeps is taken by Gradients from there.
//
// Threads: the control thread; copies and sums run on workers or on the device. Allocates when more
// is on its way than ever before.

#ifndef SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_
#define SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/ring_queue.h"
#include "offload/run/agreement.h"
#include "offload/run/context.h"
#include "offload/run/gradients.h"
#include "offload/run/rank_links.h"

namespace sluice {

class GradExchange {
 public:
  using Done = Gradients::Done;

  // What it asks of others.
  struct Asks {
    std::function<const std::vector<UnitIndex>*()> acquisitions;  // of this iteration; null: none
    std::function<bool(UnitIndex)> updating;  // whether an update still reads gradients of it
  };

  // None is owned.
  GradExchange(const Context& context, Communicator* communicator, Agreement* agreement,
               Gradients* gradients, Asks asks);
  ~GradExchange();

  // This rank's gradient of the tensor, to be added to the others'; there when `fence` is complete.
  // `done` says that `data` is not read any more.
  void Give(TensorIndex tensor, ConstMemoryView data, const Fence* fence, Done done);
  // Whether a window may be ended here: the last one has ended everywhere.
  bool window_open() const { return !closed_; }
  // Nothing more comes in this window, which is open. `what` says what is next: kWindowEnd, or a
  // meeting, after which MeetingOver comes before anything is given.
  void EndWindow(Said what);
  // Whether anything was given since the last window was ended here.
  bool window_begun() const { return window_begun_; }
  // Of kGradients, kNothing, kWindowEnd and meetings.
  void OnSaid(Rank rank, Said said);

  // All ranks have come to the meeting, and all that was given has reached Gradients.
  bool met() const { return meeting_agreed_ && settled(); }
  void MeetingOver() { at_meeting_ = meeting_agreed_ = false; }
  // Of a meeting over a gradient, when it is agreed: whether any rank was given it.
  bool met_given() const { return met_given_; }
  // A rank that is at a meeting of that kind; null: there is none. In words: what it is there for.
  const Said* MeetingOf(Rank rank) const {
    return places_[rank.value()] == kAtMeeting ? &meetings_[rank.value()] : nullptr;
  }
  std::string InWords(Said meeting) const;
  // Nothing is on its way, and the windows that were ended here have ended everywhere.
  bool settled() const { return !closed_ && agreed_.empty() && under_way_ == 0; }
  bool idle() const { return settled() && waiting_ == 0; }
  // Something that was given here is not copied yet.
  bool own_left() const { return waiting_ > 0; }

  // Whether something here waits for other ranks; `caller_waits`: the caller does, for whatever.
  bool awaits(bool caller_waits) const {
    return (at_meeting_ && !meeting_agreed_) || waiting_ > 0 || (closed_ && caller_waits);
  }
  uint64_t progress() const { return progress_; }  // grows when something that waited goes on
  RankWait Awaited() const;

  // Whether this rank was given something of the tensor since it was last cleared.
  bool given(TensorIndex tensor) const { return given_[tensor.value()] != 0; }
  void SetGiven(TensorIndex tensor) { given_[tensor.value()] = 1; }  // written, on all ranks
  void Clear(TensorIndex tensor) { given_[tensor.value()] = 0; }
  void ClearAll() { given_.assign(given_.size(), 0); }

  // The unit's update has read what it needs.
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
  struct LaterTurn {
    uint32_t given = 0;  // so many of `later`
    bool said = false;
  };
  struct Unit {
    uint32_t tensors = 0;      // that are updated
    uint32_t said = 0;         // ranks that have it
    uint32_t answered = 0;     // ranks that have it, or won't, or have ended the window
    bool acquired = false;     // while it is said what is not
    bool said_here = false;    // of what is collected now
    bool under_way = false;    // a reduction
    uint32_t collected = 0;    // tensors of which something was given for the next reduction
    size_t copying = 0;        // of that
    bool waits = false;        // is in collecting_
    RingQueue<Given> to_copy;  // for this rank's next turn, whose staging this is
    MemoryView staging;
    RingQueue<Given> later;  // for the turns after it
    RingQueue<LaterTurn> later_turns;
    bool later_open = false;       // the last of these may get more
    uint32_t later_collected = 0;  // tensors that it has something of
  };
  struct Agreed {
    UnitIndex unit;
    bool mine = false;  // this rank's next turn; else it adds zeros
  };

  Unit& At(UnitIndex unit) { return units_[unit.value()]; }
  void Take(Given given);
  void Add(UnitIndex index, Given given);
  void SayWhatIsNothing();
  void Collect(UnitIndex index);
  void OnCopied(CopyTask* task);
  void Say(UnitIndex index);
  void AddLater(UnitIndex index, Given given);
  void CloseLater(UnitIndex index);
  void NextTurn(UnitIndex index);
  // What a rank has said of a unit in this window.
  struct Mark {
    uint32_t turns = 0;  // that it has, and that are not agreed on
    bool wont = false;   // have more
  };
  Mark& MarkOf(UnitIndex unit, uint32_t rank) {
    return marks_[unit.value() * communicator_->ranks() + rank];
  }
  const Mark& MarkOf(UnitIndex unit, uint32_t rank) const {
    return marks_[unit.value() * communicator_->ranks() + rank];
  }
  void SetMark(UnitIndex unit, uint32_t rank, Mark mark);
  void AgreeIfAnswered(UnitIndex unit);
  void OnEnded(uint32_t rank, Said said);
  void Agree();
  void TakeAll(RingQueue<Given>* given);
  void OnWindowEnded();
  void Pump();
  void Begin(Agreed what, MemoryView staging, MemoryView received);
  void OnZeroed(Reduction* reduction);
  void OnExchanged(Reduction* reduction);
  void OnSummed(Reduction* reduction);
  void HandOnIfFree(Reduction* reduction);
  void HandOn(Reduction* reduction);
  void End(Reduction* reduction, const absl::Status& status);
  MemoryView TakeStaging(bool last_one);

  const Context context_;
  Communicator* const communicator_;
  Agreement* const agreement_;
  Gradients* const gradients_;
  const Asks asks_;
  const bool shared_;    // each rank keeps its shard's only
  const bool in_place_;  // the host reaches what was given, and staging
  const bool ordered_;   // ReductionMode
  const size_t under_way_max_;
  std::vector<Unit> units_;
  std::vector<uint8_t> given_;  // by tensor
  enum Collected : uint8_t { kNothing, kGiven, kCopied };
  std::vector<uint8_t> collected_;   // by tensor, for this rank's next turn
  std::vector<uint8_t> in_later_;    // by tensor, for the last of the later turns
  RingQueue<UnitIndex> collecting_;  // that wait for staging, or for a fence
  RingQueue<Given> next_window_;
  size_t waiting_ = 0;  // given, and not copied
  std::vector<std::unique_ptr<CopyTask>> copies_;
  std::vector<CopyTask*> free_copies_;
  std::vector<std::unique_ptr<Reduction>> pool_;
  std::vector<Reduction*> free_reductions_;
  std::vector<Reduction*> held_;  // back, until their unit's update has ended
  RingQueue<Agreed> agreed_;      // to be begun, in this order
  size_t under_way_ = 0;          // reductions
  bool zeroing_ = false;          // the last that was begun is not exchanged yet
  bool window_begun_ = false;
  bool closed_ = false;      // ended here, and not yet by all
  bool at_meeting_ = false;  // said here
  uint64_t progress_ = 0;
  bool meeting_agreed_ = false;
  bool met_given_ = false;
  std::vector<Mark> marks_;  // by unit and rank
  enum Place : uint8_t { kInWindow, kAtEnd, kAtMeeting };
  std::vector<Place> places_;   // by rank: what it has said of the window
  std::vector<Said> meetings_;  // by rank that is at one
  absl::Status failed_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRAD_EXCHANGE_H_
