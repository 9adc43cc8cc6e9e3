// offload/run/unit_gathers.h
//
// Units whose parameters every rank has a shard of, brought whole into slots. A rank that has room
// for a unit says so. When all have, or one that is waited for can't wait for the others any more,
// every rank sends its shard to those that have room: the others take part as senders. So ranks
// that use different units, or keep different ones, need not agree on anything beforehand, and none
// waits for a rank that has no use for the unit.
//
// A shard is sent from where it lives, if that is where ranks exchange. Else it is brought there
// first: by a rank that receives, into its slot, by another into a buffer for that.
//
// Threads: the control thread. Allocates when more is on its way than ever before.

#ifndef SLUICE_OFFLOAD_RUN_UNIT_GATHERS_H_
#define SLUICE_OFFLOAD_RUN_UNIT_GATHERS_H_

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "offload/run/agreement.h"
#include "offload/run/context.h"
#include "offload/run/launch_order.h"

namespace sluice {

class UnitGathers {
 public:
  class Observer {
   public:
    virtual ~Observer() = default;
    // What Want asked for is there; or, with Cancelled, will not be. Not from within Want.
    virtual void OnGathered(UnitIndex unit, const absl::Status& status) = 0;
    virtual bool Awaited(UnitIndex unit) const = 0;  // whether a caller waits for it
    // Brings this rank's shard to `to`, as it lies at home. PartThere follows.
    virtual void ReadPart(UnitIndex unit, std::byte* to) = 0;
    virtual void OnServed() = 0;  // no unit is served any more
  };

  // None is owned. `order` is of all that `communicator` carries.
  UnitGathers(const Context& context, Communicator* communicator, LaunchOrder* order,
              Agreement* agreement);
  ~UnitGathers();
  void SetObserver(Observer* observer) { observer_ = observer; }

  // There is room for the unit in `slot`. Unless it may be received there at once, PartThere says
  // when: nobody uses the slot any more, and this rank's shard, if it can't be sent from its home,
  // is there.
  void Want(UnitIndex unit, std::byte* slot);
  bool at_once(UnitIndex unit) const {
    return context_.placement->hbm_in_place && context_.placement->SentFromHome(unit.value());
  }
  // The slot is ready, or this rank's shard is in the buffer that ReadPart was told.
  void PartThere(UnitIndex unit, const absl::Status& status);
  // Whether the shard is being read for others; then it can't be read into a slot.
  bool serving(UnitIndex unit) const { return serving_ == unit; }
  // If it is wanted and was not agreed on yet, it is not wanted any more: OnGathered says when.
  void Unwant(UnitIndex unit);
  void UnwantAll();
  // Anything is wanted here, or to be sent from here.
  bool busy() const { return !wanted_.empty() || sends_left_ > 0; }

  // Of kFetch, kUrgent and kUnwanted.
  void OnSaid(Rank rank, Said said);
  // Says what has become urgent. Call at each turn; the next is due at NextTime.
  void Poll();
  TimePoint NextTime() const;

  // Nothing is on its way, nor does a caller wait for what is wanted.
  bool idle() const;

 private:
  class Gather;
  struct Unit {
    std::byte* slot = nullptr;  // if it is wanted
    bool part_there = false;    // the slot is ready
    bool agreed = false;        // it will come
    bool received = false;      // all of it
    bool urgent = false;        // said
    bool unwanted = false;      // said
    uint32_t unheard = 0;       // of what was said here of wanting it: what has not come back
    TimePoint since{0};
    uint32_t ranks = 0;         // that want it, and to whom nothing is agreed
    size_t sent_from_slot = 0;  // gathers under way that only send: the slot must stay
  };
  struct Launch {
    UnitIndex unit;
    std::vector<uint8_t> receives;  // by rank
  };

  Unit& At(UnitIndex unit) { return units_[unit.value()]; }
  uint8_t& Wants(UnitIndex unit, uint32_t rank) {
    return wants_[unit.value() * communicator_->ranks() + rank];
  }
  bool IsBrought(UnitIndex unit) const { return !context_.placement->SentFromHome(unit.value()); }
  void Agree(UnitIndex unit);
  void CancelIfUnwanted(UnitIndex unit);
  void EndIfReceived(UnitIndex unit);
  void Forget(UnitIndex unit);
  bool StartIfReady(const Launch& launch);
  bool MayStart(UnitIndex unit, bool receives);
  std::array<ConstMemoryView, 2> ShardOf(UnitIndex unit) const;
  void End(Gather* gather);

  const Context context_;
  Communicator* const communicator_;
  LaunchOrder* const order_;
  Agreement* const agreement_;
  Observer* observer_ = nullptr;
  std::vector<Unit> units_;
  std::vector<uint8_t> wants_;     // by unit and rank
  std::vector<UnitIndex> wanted_;  // by this rank, and not there
  std::vector<std::unique_ptr<Gather>> pool_;
  std::vector<Gather*> free_;
  size_t sends_left_ = 0;             // gathers that were agreed on and have not ended
  std::optional<UnitIndex> serving_;  // whose shard is in the buffer for that, or on its way there
  bool served_ = false;               // it is there, and was not sent
  Counter* const gathered_bytes_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_UNIT_GATHERS_H_
