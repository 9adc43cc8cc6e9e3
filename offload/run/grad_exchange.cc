#include "offload/run/grad_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/reduction.h"

namespace sluice {

// One tensor's gradient on its way into staging.
class GradExchange::CopyTask final : public Task, public Event {
 public:
  explicit CopyTask(GradExchange* owner) : owner_(owner) {}

  void Run() override {
    std::memcpy(to, given.data.data(), given.data.size());
    owner_->context_.inbox->Post(this);
  }
  Nanos cost() const override { return Nanos(static_cast<int64_t>(given.data.size()) / 10 + 200); }
  void Handle() override { owner_->OnCopied(this); }

  Given given;
  Group* group = nullptr;
  std::byte* to = nullptr;

 private:
  GradExchange* const owner_;
};

GradExchange::GradExchange(const Context& context, Communicator* communicator, Agreement* agreement,
                           Gradients* gradients, const Updater* updater,
                           std::function<const std::vector<UnitIndex>*()> acquisitions)
    : context_(context),
      communicator_(communicator),
      agreement_(agreement),
      gradients_(gradients),
      updater_(updater),
      acquisitions_(std::move(acquisitions)),
      shared_(context.layout->sharding().states),
      under_way_max_(shared_ ? context.memory->received_buffers.count() : 1),
      units_(context.layout->units().size()),
      given_(context.layout->tensors().size(), 0),
      marks_(context.layout->units().size() * communicator->ranks()),
      places_(communicator->ranks(), kInWindow) {
  for (const TensorLayout& tensor : context.layout->tensors())
    At(tensor.unit).tensors += tensor.keep == Keep::kParam ? 0 : 1;
  for (size_t i = 0; i < under_way_max_; ++i) {
    pool_.push_back(std::make_unique<Reduction>(this));
    free_reductions_.push_back(pool_.back().get());
  }
  track_ = context.trace->AddTrack("gradients among ranks");
}

GradExchange::~GradExchange() = default;

void GradExchange::Give(TensorIndex tensor, ConstMemoryView data, const Fence* fence, Done done) {
  if (!failed_.ok()) return done(failed_);
  given_[tensor.value()] = 1;
  ++waiting_;
  Given given{.tensor = tensor, .data = data, .fence = fence, .done = std::move(done)};
  if (closed_) return next_window_.push_back(std::move(given));
  Take(std::move(given));
}

void GradExchange::Take(Given given) {
  if (!std::exchange(window_begun_, true)) SayWhatIsNothing();
  const UnitIndex index = context_.layout->tensor(given.tensor).unit;
  Unit& unit = At(index);
  Group* last = unit.groups.empty() ? nullptr : unit.groups[unit.groups.size() - 1];
  if (last != nullptr && std::ranges::count(last->tensors, given.tensor) > 0) Say(index, last);
  if (last == nullptr || last->said) {
    if (free_groups_.empty()) {
      groups_.push_back(std::make_unique<Group>());
      free_groups_.push_back(groups_.back().get());
    }
    last = TakeFree(&free_groups_);
    unit.groups.push_back(last);
  }
  last->tensors.push_back(given.tensor);
  last->to_copy.push_back(std::move(given));
  if (last->tensors.size() == unit.tensors) Say(index, last);
  Collect(index);
}

void GradExchange::SayWhatIsNothing() {
  const std::vector<UnitIndex>* const acquired = acquisitions_();
  if (acquired == nullptr || acquired->empty()) return;
  for (Unit& unit : units_) unit.acquired = false;
  for (const UnitIndex unit : *acquired) At(unit).acquired = true;
  for (uint32_t u = 0; u < units_.size(); ++u) {
    if (!units_[u].acquired && units_[u].tensors > 0) agreement_->Say({Topic::kNothing, u});
  }
}

void GradExchange::Say(UnitIndex unit, Group* group) {
  if (!std::exchange(group->said, true)) agreement_->Say({Topic::kGradients, unit.value()});
}

MemoryView GradExchange::TakeStaging(bool last_one) {
  BufferPool& pool = context_.memory->staging_buffers;
  return pool.free_count() > (last_one ? 0 : 1) ? pool.TryTake() : MemoryView();
}

// Copies what is next of the unit, as far as it is there.
void GradExchange::Collect(UnitIndex index) {
  Unit& unit = At(index);
  if (unit.groups.empty()) return;
  Group* const group = unit.groups.front();
  if (group->staging.empty()) group->staging = TakeStaging(false);
  if (!group->staging.empty()) Copy(group);
  if (!group->to_copy.empty() && !std::exchange(unit.waits, true)) collecting_.push_back(index);
}

void GradExchange::Copy(Group* group) {
  while (!group->to_copy.empty() && group->to_copy.front().fence->Complete()) {
    if (free_copies_.empty()) {
      copies_.push_back(std::make_unique<CopyTask>(this));
      free_copies_.push_back(copies_.back().get());
    }
    CopyTask* const task = TakeFree(&free_copies_);
    task->given = std::move(group->to_copy.front());
    group->to_copy.pop_front();
    const TensorLayout& layout = context_.layout->tensor(task->given.tensor);
    task->group = group;
    task->to = group->staging.data() + layout.offset * SizeOf(layout.types.grad);
    ++group->copying;
    context_.executor->Submit(task);
  }
}

void GradExchange::CollectMore() {
  for (size_t left = collecting_.size(); left > 0; --left) {
    const UnitIndex index = collecting_.front();
    collecting_.pop_front();
    At(index).waits = false;
    Collect(index);
  }
}

void GradExchange::OnCopied(CopyTask* task) {
  const Done done = std::exchange(task->given.done, nullptr);
  free_copies_.push_back(task);
  --task->group->copying;
  --waiting_;
  done(absl::OkStatus());
  Pump();
}

void GradExchange::EndWindow(Topic topic) {
  SLUICE_CHECK(window_open() && !at_step_);
  for (uint32_t u = 0; u < units_.size(); ++u) {
    Unit& unit = units_[u];
    if (!unit.groups.empty()) Say(UnitIndex(u), unit.groups[unit.groups.size() - 1]);
  }
  at_step_ = topic == Topic::kStep;
  closed_ = true;
  window_begun_ = false;
  agreement_->Say({topic, 0});
}

template <typename F>
void GradExchange::Change(UnitIndex index, uint32_t rank, F&& change) {
  Unit& unit = At(index);
  Mark& mark = MarkOf(index, rank);
  const auto said = [&mark] { return mark.groups > 0 && !mark.nothing ? 1u : 0u; };
  const auto answered = [&] {
    return mark.groups > 0 || mark.nothing || places_[rank] != kInWindow ? 1u : 0u;
  };
  unit.said -= said();
  unit.answered -= answered();
  change(&mark);
  unit.said += said();
  unit.answered += answered();
}

void GradExchange::OnSaid(Rank rank, Said said) {
  const UnitIndex unit(said.index);
  const Topic topic = said.topic;
  if (topic == Topic::kWindowEnd || topic == Topic::kStep)
    return OnEnded(rank.value(), topic == Topic::kStep);
  Change(unit, rank.value(), [topic](Mark* mark) {
    mark->groups += topic == Topic::kGradients ? 1 : 0;
    mark->nothing = mark->nothing || topic == Topic::kNothing;
  });
  Agree(unit);
  Pump();
}

// On as many reductions of the unit as every rank has answered for.
void GradExchange::Agree(UnitIndex index) {
  Unit& unit = At(index);
  while (unit.said > 0 && unit.answered == communicator_->ranks()) {
    Agreed agreed{.unit = index};
    for (uint32_t r = 0; r < communicator_->ranks(); ++r) {
      if (MarkOf(index, r).groups == 0 || MarkOf(index, r).nothing) continue;
      if (Rank(r) == communicator_->rank()) agreed.here = true;
      Change(index, r, [](Mark* mark) { --mark->groups; });
    }
    agreed_.push_back(agreed);
  }
}

void GradExchange::OnEnded(uint32_t rank, bool for_step) {
  for (size_t u = units_.size(); u-- > 0;) {
    const Mark& mark = MarkOf(UnitIndex(static_cast<uint32_t>(u)), rank);
    if (places_[rank] == kInWindow && mark.groups == 0 && !mark.nothing) ++units_[u].answered;
  }
  places_[rank] = for_step ? kAtStep : kAtEnd;
  const bool all = std::ranges::find(places_, kInWindow) == places_.end();
  for (size_t u = units_.size(); u-- > 0;) {
    const UnitIndex index(static_cast<uint32_t>(u));
    Agree(index);
    if (!all) continue;
    // What ranks have of it that had said they wouldn't.
    for (uint32_t r = 0; r < places_.size(); ++r)
      Change(index, r, [](Mark* mark) { mark->nothing = false; });
    Agree(index);
  }
  Pump();
  if (all) OnWindowEnded();
}

// A rank that waits for a step has ended every window until then.
void GradExchange::OnWindowEnded() {
  step_agreed_ = std::ranges::find(places_, kAtEnd) == places_.end();
  uint32_t ended = 0;
  for (Place& place : places_) {
    if (step_agreed_ || place == kAtEnd) place = kInWindow;
    ended += place == kInWindow ? 0 : 1;
  }
  std::ranges::fill(marks_, Mark());
  for (Unit& unit : units_) {
    unit.said = 0;
    unit.answered = ended;
  }
  if (at_step_ && !step_agreed_) return;  // this rank waits for the step
  closed_ = false;
  for (size_t left = next_window_.size(); left > 0; --left) {
    Given given = std::move(next_window_.front());
    next_window_.pop_front();
    Take(std::move(given));
  }
}

void GradExchange::StepBegun() { at_step_ = step_agreed_ = false; }

// Begins what was agreed on, in that order.
void GradExchange::Pump() {
  while (failed_.ok() && !agreed_.empty() && under_way_ < under_way_max_) {
    const Agreed agreed = agreed_.front();
    Unit& unit = At(agreed.unit);
    if (unit.under_way) return;
    MemoryView staging;
    if (agreed.here) {
      Group* const group = unit.groups.front();
      if (group->staging.empty()) group->staging = TakeStaging(true);
      if (group->staging.empty()) return;
      Copy(group);
      if (group->copying > 0 || !group->to_copy.empty()) return;
      staging = group->staging;
    } else {
      staging = TakeStaging(true);
      if (staging.empty()) return;
    }
    const MemoryView received = context_.memory->received_buffers.TryTake();
    SLUICE_CHECK(!received.empty());
    agreed_.pop_front();
    Begin(agreed, staging, received);
  }
}

// What is not in the group is zeros.
void GradExchange::Begin(const Agreed& agreed, MemoryView staging, MemoryView received) {
  Unit& unit = At(agreed.unit);
  Group* const group = agreed.here ? unit.groups.front() : nullptr;
  for (const TensorIndex t : context_.layout->unit(agreed.unit).tensors) {
    const TensorLayout& tensor = context_.layout->tensor(t);
    if (tensor.keep == Keep::kParam) continue;
    if (group != nullptr && std::ranges::count(group->tensors, t) > 0) continue;
    const int64_t size = SizeOf(tensor.types.grad);
    std::memset(staging.data() + tensor.offset * size, 0,
                static_cast<size_t>(tensor.elements * size));
  }
  if (group != nullptr) {
    unit.groups.pop_front();
    group->tensors.clear();
    group->said = false;
    group->staging = {};
    free_groups_.push_back(group);
  }
  unit.under_way = true;
  ++under_way_;
  TakeFree(&free_reductions_)->Start(agreed.unit, staging, received);
  Collect(agreed.unit);
}

void GradExchange::OnExchanged(Reduction* reduction) {
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  reduction->Sum();
}

void GradExchange::OnSummed(Reduction* reduction) {
  if (shared_) return HandOn(reduction);
  reduction->Gather();
}

// To Gradients, by tensor: what this rank keeps of each, which may be nothing.
void GradExchange::HandOn(Reduction* reduction) {
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  const UnitIndex index = reduction->unit();
  if (updater_->UnitPending(index)) {
    At(index).held = reduction;
    return;
  }
  reduction->set_parts_left(At(index).tensors);
  for (const TensorIndex t : context_.layout->unit(index).tensors) {
    const TensorLayout& tensor = context_.layout->tensor(t);
    if (tensor.keep == Keep::kParam) continue;
    const int64_t size = SizeOf(tensor.types.grad);
    const MemoryView kept = reduction->staging().subspan(
        static_cast<size_t>((tensor.offset + tensor.kept.begin) * size),
        static_cast<size_t>(tensor.kept.size() * size));
    gradients_->Push({.tensor = t, .data = kept, .first = tensor.kept.begin}, reduction->ready(),
                     [this, reduction](const absl::Status& status) {
                       if (reduction->OnePartDone(status)) End(reduction, reduction->status());
                     });
  }
}

void GradExchange::GoOn(UnitIndex unit) {
  if (Reduction* const held = std::exchange(At(unit).held, nullptr)) HandOn(held);
}

void GradExchange::GiveBack(Reduction* reduction) {
  context_.memory->received_buffers.Give(reduction->received());
  context_.memory->staging_buffers.Give(reduction->staging());
  free_reductions_.push_back(reduction);
  --under_way_;
  At(reduction->unit()).under_way = false;
}

void GradExchange::End(Reduction* reduction, const absl::Status& status) {
  const UnitIndex unit = reduction->unit();
  context_.trace->Record(track_, "reduce", unit.value(), reduction->began(), context_.clock->Now());
  GiveBack(reduction);
  if (!status.ok()) {
    return context_.fail(
        Annotate(status, fmt::format("adding up the gradients of unit '{}' over ranks",
                                     context_.layout->unit(unit).name)));
  }
  Pump();
  CollectMore();
}

void GradExchange::Fail(const absl::Status& status) {
  failed_ = status;
  for (Unit& unit : units_) {
    if (unit.held != nullptr) GiveBack(std::exchange(unit.held, nullptr));
  }
  const auto end_all = [&](RingQueue<Given>* queue) {
    for (; !queue->empty(); queue->pop_front()) {
      --waiting_;
      queue->front().done(status);
    }
  };
  for (const auto& group : groups_) end_all(&group->to_copy);
  end_all(&next_window_);
}

}  // namespace sluice
