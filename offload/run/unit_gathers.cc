#include "offload/run/unit_gathers.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {
// So long a rank waits for the others to have room too.
constexpr Nanos kPatience = std::chrono::milliseconds(1);
}  // namespace

// One unit on its way to those that receive it.
class UnitGathers::Gather final : public Event {
 public:
  explicit Gather(UnitGathers* owner)
      : owner_(owner),
        send_ends_(owner->communicator_->ranks()),
        receive_ends_(owner->communicator_->ranks()) {
    op_.inbox = owner->context_.inbox;
    op_.event = this;
  }

  // `from`: this rank's shard. `slot`: null if this rank only sends.
  void Start(const Launch& launch, std::span<const ConstMemoryView> from, std::byte* slot) {
    unit = launch.unit;
    receives = slot != nullptr;
    const UnitLayout& layout = owner_->context_.layout->unit(unit);
    const bool all = std::ranges::find(launch.receives, 0) == launch.receives.end();
    send_.clear();
    receive_.clear();
    const int64_t size = layout.types.param.size();
    for (uint32_t r = 0; r < receive_ends_.size(); ++r) {
      if (!all && launch.receives[r] != 0) send_.insert(send_.end(), from.begin(), from.end());
      send_ends_[r] = static_cast<uint32_t>(send_.size());
      const auto place = [&](ElementRange range, int64_t begin) {
        receive_.emplace_back(slot + (begin + range.begin) * size,
                              static_cast<size_t>(range.size() * size));
      };
      if (receives) place(layout.updated.shard(Rank(r)), 0);
      if (receives) place(layout.frozen.shard(Rank(r)), layout.updated_elements);
      receive_ends_[r] = static_cast<uint32_t>(receive_.size());
    }
    if (all) send_.assign(from.begin(), from.end());
    op_.kind = all ? CommKind::kAllGather : CommKind::kAllToAll;
    op_.tag = (uint64_t{2} << 32) + unit.value();
    op_.send.views = send_;
    op_.send.ends = all ? std::span<const uint32_t>() : send_ends_;
    op_.receive = {.views = receive_, .ends = receive_ends_};
    owner_->communicator_->Enqueue(&op_);
  }
  void Handle() override { owner_->End(this); }

  UnitIndex unit;
  bool receives = false;
  bool from_slot = false;
  const CommOp& op() const { return op_; }

 private:
  UnitGathers* const owner_;
  std::vector<ConstMemoryView> send_;
  std::vector<uint32_t> send_ends_;
  std::vector<MemoryView> receive_;
  std::vector<uint32_t> receive_ends_;
  CommOp op_;
};

UnitGathers::UnitGathers(const Context& context, Communicator* communicator, LaunchOrder* order,
                         Agreement* agreement)
    : context_(context),
      communicator_(communicator),
      order_(order),
      agreement_(agreement),
      units_(context.layout->units().size()),
      wants_(context.layout->units().size() * communicator->ranks(), 0),
      gathered_bytes_(context.metrics->Get("gathered_bytes")) {
  track_ = context.trace->AddTrack("units from ranks");
}

UnitGathers::~UnitGathers() = default;

void UnitGathers::Want(UnitIndex index, std::byte* slot) {
  Unit& unit = At(index);
  SLUICE_CHECK(unit.slot == nullptr);
  unit = {.slot = slot,
          .part_there = at_once(index),
          .unheard = unit.unheard + 1,
          .since = context_.clock->Now(),
          .ranks = unit.ranks,
          .sent_from_slot = 0};
  wanted_.push_back(index);
  agreement_->Say({Topic::kFetch, index.value()});
}

void UnitGathers::PartThere(UnitIndex index, const absl::Status& status) {
  if (!status.ok()) return context_.fail(status);
  if (serving_ == index) {
    served_ = true;
  } else {
    At(index).part_there = true;
    CancelIfUnwanted(index);
  }
  order_->Pump();
}

void UnitGathers::Unwant(UnitIndex index) {
  Unit& unit = At(index);
  if (unit.slot == nullptr || unit.agreed || std::exchange(unit.unwanted, true)) return;
  ++unit.unheard;
  agreement_->Say({Topic::kUnwanted, index.value()});
}

void UnitGathers::UnwantAll() {
  for (const UnitIndex index : wanted_) Unwant(index);
}

bool UnitGathers::idle() const {
  return sends_left_ == 0 &&
         std::ranges::none_of(wanted_, [this](UnitIndex unit) { return observer_->Awaited(unit); });
}

void UnitGathers::OnSaid(Rank rank, Said said) {
  const UnitIndex index(said.index);
  uint8_t& wants = Wants(index, rank.value());
  if (rank == communicator_->rank() && said.topic != Topic::kUrgent) --At(index).unheard;
  if (said.topic == Topic::kFetch) {
    wants = 1;
    if (++At(index).ranks == communicator_->ranks()) Agree(index);
  } else if (wants == 0) {
    return;  // it was agreed on before this was heard
  } else if (said.topic == Topic::kUrgent) {
    Agree(index);
  } else {
    wants = 0;
    --At(index).ranks;
    if (rank == communicator_->rank()) CancelIfUnwanted(index);
  }
}

// To be sent to all that want it now.
void UnitGathers::Agree(UnitIndex index) {
  Launch launch{.unit = index, .receives = {}};
  for (uint32_t r = 0; r < communicator_->ranks(); ++r) {
    launch.receives.push_back(std::exchange(Wants(index, r), 0));
  }
  At(index).ranks = 0;
  if (launch.receives[communicator_->rank().value()] != 0) At(index).agreed = true;
  ++sends_left_;
  order_->Add([this, launch = std::move(launch)] { return StartIfReady(launch); });
}

// All have heard that it is not wanted, and nothing writes to the slot any more.
void UnitGathers::CancelIfUnwanted(UnitIndex index) {
  const Unit& unit = At(index);
  if (unit.slot == nullptr || !unit.unwanted || unit.unheard > 0 || unit.agreed) return;
  if (!unit.part_there || unit.sent_from_slot > 0) return;
  Forget(index);
  observer_->OnGathered(index, absl::CancelledError("not wanted any more"));
}

void UnitGathers::Forget(UnitIndex index) {
  At(index).slot = nullptr;
  std::erase(wanted_, index);
}

void UnitGathers::Poll() {
  const TimePoint now = context_.clock->Now();
  for (const UnitIndex index : wanted_) {
    Unit& unit = At(index);
    if (unit.agreed || unit.urgent || unit.unwanted || now - unit.since < kPatience) continue;
    if (!observer_->Awaited(index)) continue;
    unit.urgent = true;
    agreement_->Say({Topic::kUrgent, index.value()});
  }
}

TimePoint UnitGathers::NextTime() const {
  const bool any = std::ranges::any_of(wanted_, [this](UnitIndex index) {
    const Unit& unit = units_[index.value()];
    return !unit.agreed && !unit.urgent && !unit.unwanted && observer_->Awaited(index);
  });
  return any ? context_.clock->Now() + kPatience : kForever;
}

// Whether this rank's shard can be sent, and what it receives come. If not, the shard is brought.
bool UnitGathers::MayStart(UnitIndex index, bool receives) {
  const Unit& unit = At(index);
  if (!receives && !IsBrought(index)) return true;
  if (unit.slot != nullptr) return unit.part_there;
  if (serving_) return serving_ == index && std::exchange(served_, false);
  serving_ = index;
  observer_->ReadPart(index, context_.memory->served_shard.data());
  return false;
}

bool UnitGathers::StartIfReady(const Launch& launch) {
  const bool receives = launch.receives[communicator_->rank().value()] != 0;
  if (!MayStart(launch.unit, receives)) return false;
  if (free_.empty()) {
    pool_.push_back(std::make_unique<Gather>(this));
    free_.push_back(pool_.back().get());
  }
  Gather* const gather = free_.back();
  free_.pop_back();
  Unit& unit = At(launch.unit);
  gather->from_slot = !receives && IsBrought(launch.unit) && unit.slot != nullptr;
  if (gather->from_slot) ++unit.sent_from_slot;
  gather->Start(launch, ShardOf(launch.unit), receives ? unit.slot : nullptr);
  return true;
}

// Where this rank's shard is. In the slot its two parts are not side by side.
std::array<ConstMemoryView, 2> UnitGathers::ShardOf(UnitIndex index) const {
  const UnitLayout& layout = context_.layout->unit(index);
  const Unit& unit = units_[index.value()];
  const Rank rank = communicator_->rank();
  const ElementRange updated = layout.updated.shard(rank), frozen = layout.frozen.shard(rank);
  const int64_t size = layout.types.param.size();
  const auto view = [size](const std::byte* base, int64_t begin, int64_t places) {
    return ConstMemoryView(base + begin * size, static_cast<size_t>(places * size));
  };
  if (IsBrought(index) && unit.slot != nullptr) {
    return {view(unit.slot, updated.begin, updated.size()),
            view(unit.slot, layout.updated_elements + frozen.begin, frozen.size())};
  }
  const std::byte* const home = IsBrought(index) ? context_.memory->served_shard.data()
                                                 : context_.memory->param_home[index.value()];
  return {view(home, 0, updated.size()), view(home, updated.size(), frozen.size())};
}

void UnitGathers::End(Gather* gather) {
  const absl::Status& status = gather->op().status;
  context_.trace->Record(track_, gather->receives ? "gather unit" : "send shard",
                         gather->unit.value(), gather->op().started, gather->op().finished);
  const UnitIndex index = gather->unit;
  const bool receives = gather->receives;
  const bool from_slot = gather->from_slot;
  free_.push_back(gather);
  --sends_left_;
  if (!status.ok()) {
    return context_.fail(Annotate(status, fmt::format("gathering the parameters of unit '{}'",
                                                      context_.layout->unit(index).name)));
  }
  if (from_slot) {
    --At(index).sent_from_slot;
    CancelIfUnwanted(index);
    EndIfReceived(index);
  } else if (!receives && serving_ == index) {
    serving_.reset();
    observer_->OnServed();
  }
  if (receives) {
    gathered_bytes_->Add(context_.layout->unit(index).param_bytes().value());
    At(index).received = true;
    EndIfReceived(index);
  }
  order_->Pump();
}

// What is sent from the slot to others must not be written over.
void UnitGathers::EndIfReceived(UnitIndex index) {
  const Unit& unit = At(index);
  if (unit.slot == nullptr || !unit.received || unit.sent_from_slot > 0) return;
  Forget(index);
  observer_->OnGathered(index, absl::OkStatus());
}

}  // namespace sluice
