#include "offload/run/grad_exchange.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/reduction.h"
#include "optim/on_stream.h"

namespace sluice {

// One tensor's gradient on its way into staging: set, or added to what is there; by a worker where
// the host can reach both, else by the device, behind the stream that made it.
class GradExchange::CopyTask final : public Task, public DeviceWork, public Event {
 public:
  explicit CopyTask(GradExchange* owner) : owner_(owner) {}

  void Start() {
    const Context& c = owner_->context_;
    if (owner_->in_place_) return c.executor->Submit(this);
    op_.stream = StreamKind::kTake;
    op_.work = this;
    op_.inbox = c.inbox;
    op_.event = this;
    c.device->OrderAfter(op_.stream, *given.fence);
    c.device->Enqueue(&op_);
  }
  void Run() override {
    Launch(nullptr);
    owner_->context_.inbox->Post(this);
  }
  void Launch(void* stream) override {
    const ConstMemoryView data = given.data;
    const FloatType type = owner_->context_.layout->tensor(given.tensor).types.grad;
    if (adding) {
      AccumulateOn(stream, to, data.data(), type, data.size() / static_cast<size_t>(SizeOf(type)));
    } else {
      CopyOn(stream, to, data.data(), data.size());
    }
  }
  TaskCost cost() const override {
    return {TaskKind::kCopy, static_cast<int64_t>(given.data.size())};
  }
  void Handle() override { owner_->OnCopied(this); }
  const absl::Status& status() const { return op_.status; }

  Given given;
  std::byte* to = nullptr;
  bool adding = false;

 private:
  GradExchange* const owner_;
  DeviceOp op_;  // where the device copies
};

GradExchange::GradExchange(const Context& context, Communicator* communicator, Agreement* agreement,
                           Gradients* gradients, Asks asks)
    : context_(context),
      communicator_(communicator),
      agreement_(agreement),
      gradients_(gradients),
      asks_(std::move(asks)),
      shared_(context.layout->sharding().states),
      in_place_(context.placement->hbm_in_place),
      ordered_(context.placement->reduction == ReductionMode::kOrdered),
      under_way_max_(shared_ ? kExchanges : 1),
      units_(context.layout->units().size()),
      given_(context.layout->tensors().size(), 0),
      collected_(context.layout->tensors().size(), 0),
      in_later_(context.layout->tensors().size(), 0),
      marks_(context.layout->units().size() * communicator->ranks()),
      places_(communicator->ranks(), kInWindow),
      meetings_(communicator->ranks(), Said{}) {
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
  if (!failed_.ok()) {  // so it may be from here on, whenever something was said
    --waiting_;
    return given.done(failed_);
  }
  At(index).said_here ? AddLater(index, std::move(given)) : Add(index, std::move(given));
}

// What follows a whole unit is another turn, whether the reduction before was begun or not.
void GradExchange::AddLater(UnitIndex index, Given given) {
  Unit& unit = At(index);
  if (!std::exchange(unit.later_open, true)) {
    unit.later_turns.push_back({});
    unit.later_collected = 0;
    for (const TensorIndex t : context_.layout->unit(index).tensors) in_later_[t.value()] = 0;
  }
  ++unit.later_turns[unit.later_turns.size() - 1].given;
  unit.later_collected += std::exchange(in_later_[given.tensor.value()], 1) == 0 ? 1 : 0;
  unit.later.push_back(std::move(given));
  if (unit.later_collected == unit.tensors) CloseLater(index);
}

void GradExchange::CloseLater(UnitIndex index) {
  Unit& unit = At(index);
  unit.later_turns[unit.later_turns.size() - 1].said = true;
  unit.later_open = false;
  agreement_->Say({Topic::kGradients, index.value()});
}

// The turn that was collected is being reduced.
void GradExchange::NextTurn(UnitIndex index) {
  Unit& unit = At(index);
  unit.collected = 0;
  unit.said_here = false;
  for (const TensorIndex t : context_.layout->unit(index).tensors) collected_[t.value()] = kNothing;
  if (unit.later_turns.empty()) return;
  const LaterTurn turn = unit.later_turns.front();
  unit.later_turns.pop_front();
  if (unit.later_turns.empty()) unit.later_open = false;
  for (uint32_t i = 0; i < turn.given; ++i) {
    uint8_t& collected = collected_[unit.later.front().tensor.value()];
    unit.collected += std::exchange(collected, kGiven) == kNothing ? 1 : 0;
    unit.to_copy.push_back(std::move(unit.later.front()));
    unit.later.pop_front();
  }
  unit.said_here = turn.said;
  Collect(index);
}

void GradExchange::Add(UnitIndex index, Given given) {
  Unit& unit = At(index);
  uint8_t& collected = collected_[given.tensor.value()];
  if (collected == kNothing) {
    collected = kGiven;
    ++unit.collected;
  }
  unit.to_copy.push_back(std::move(given));
  if (unit.collected == unit.tensors) Say(index);
  Collect(index);
}

void GradExchange::SayWhatIsNothing() {
  const std::vector<UnitIndex>* const acquired = asks_.acquisitions();
  if (acquired == nullptr || acquired->empty()) return;
  for (Unit& unit : units_) unit.acquired = false;
  for (const UnitIndex unit : *acquired) At(unit).acquired = true;
  for (uint32_t u = 0; u < units_.size(); ++u) {
    if (!units_[u].acquired && units_[u].tensors > 0) agreement_->Say({Topic::kNothing, u});
  }
}

MemoryView GradExchange::TakeStaging(bool last_one) {
  BufferPool& pool = context_.memory->staging_buffers;
  return pool.free_count() > (last_one ? 0 : 1) ? pool.TryTake() : MemoryView();
}

// Copies what was given and is there, one after another of a unit: a tensor may come twice.
void GradExchange::Collect(UnitIndex index) {
  Unit& unit = At(index);
  if (unit.to_copy.empty()) return;
  if (unit.staging.empty()) unit.staging = TakeStaging(false);
  const auto may_copy = [this](const Given& given) {
    return !in_place_ || given.fence->Complete();
  };
  if (unit.staging.empty() || !may_copy(unit.to_copy.front())) {
    if (!std::exchange(unit.waits, true)) collecting_.push_back(index);
    if (unit.staging.empty()) return;
  }
  while (!unit.to_copy.empty() && may_copy(unit.to_copy.front())) {
    const TensorIndex tensor = unit.to_copy.front().tensor;
    const bool adding = collected_[tensor.value()] == kCopied;
    if (adding && unit.copying > 0) return;  // perhaps that of the same tensor
    if (free_copies_.empty()) {
      copies_.push_back(std::make_unique<CopyTask>(this));
      free_copies_.push_back(copies_.back().get());
    }
    CopyTask* const task = free_copies_.back();
    free_copies_.pop_back();
    task->given = std::move(unit.to_copy.front());
    unit.to_copy.pop_front();
    const TensorLayout& layout = context_.layout->tensor(tensor);
    task->to = unit.staging.data() + layout.offset * SizeOf(layout.types.grad);
    task->adding = adding;
    collected_[tensor.value()] = kCopied;
    ++unit.copying;
    task->Start();
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
  const UnitIndex index = context_.layout->tensor(task->given.tensor).unit;
  const Done done = std::exchange(task->given.done, nullptr);
  const absl::Status status = task->status();
  free_copies_.push_back(task);
  --At(index).copying;
  --waiting_;
  ++progress_;
  done(status);
  if (!status.ok()) {
    return context_.fail(
        Annotate(status, fmt::format("taking the gradient of tensor '{}'",
                                     context_.layout->tensor(task->given.tensor).name)));
  }
  Collect(index);
  Pump();
}

void GradExchange::Say(UnitIndex index) {
  Unit& unit = At(index);
  if (std::exchange(unit.said_here, true)) return;
  agreement_->Say({Topic::kGradients, index.value()});
}

// Of what was given, what is there now. A failure ends what is left of it.
void GradExchange::TakeAll(RingQueue<Given>* queue) {
  for (size_t left = queue->size(); left > 0 && !queue->empty(); --left) {
    Given given = std::move(queue->front());
    queue->pop_front();
    Take(std::move(given));
  }
}

// Begins what was agreed on, in that order.
void GradExchange::Pump() {
  while (failed_.ok() && !agreed_.empty() && under_way_ < under_way_max_ && !zeroing_) {
    const Agreed next = agreed_.front();
    Unit& unit = At(next.unit);
    if (unit.under_way) return;
    MemoryView staging;
    if (next.mine) {
      if (unit.staging.empty()) unit.staging = TakeStaging(true);
      if (unit.staging.empty()) return;
      Collect(next.unit);
      if (unit.copying > 0 || !unit.to_copy.empty()) return;
      staging = std::exchange(unit.staging, {});
    } else {
      staging = TakeStaging(true);
      if (staging.empty()) return;
    }
    MemoryView received;
    if (ordered_) received = context_.memory->received_buffers.TryTake();
    SLUICE_CHECK(received.empty() != ordered_);
    agreed_.pop_front();
    Begin(next, staging, received);
  }
}

void GradExchange::Begin(Agreed what, MemoryView staging, MemoryView received) {
  At(what.unit).under_way = true;
  ++under_way_;
  Reduction* const reduction = free_reductions_.back();
  free_reductions_.pop_back();
  reduction->Take(what.unit, staging, received);
  for (const TensorIndex t : context_.layout->unit(what.unit).tensors) {
    const TensorLayout& tensor = context_.layout->tensor(t);
    if (tensor.keep == Keep::kParam || (what.mine && collected_[t.value()] != kNothing)) continue;
    reduction->AddZeros(tensor.offset, tensor.elements);
  }
  zeroing_ = !reduction->Zero();
  if (!zeroing_) reduction->Exchange();
  if (what.mine) NextTurn(what.unit);
}

// Reductions are exchanged in the order in which they were agreed on, so the next has waited.
void GradExchange::OnZeroed(Reduction* reduction) {
  zeroing_ = false;
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  reduction->Exchange();
  Pump();
}

void GradExchange::OnExchanged(Reduction* reduction) {
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  reduction->Sum();
}

void GradExchange::OnSummed(Reduction* reduction) {
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  if (shared_) return HandOnIfFree(reduction);
  reduction->Gather();
}

// This rank may lack the unit, so nobody has waited here for the update before.
void GradExchange::HandOnIfFree(Reduction* reduction) {
  if (asks_.updating(reduction->unit()) && failed_.ok()) return held_.push_back(reduction);
  HandOn(reduction);
}

void GradExchange::GoOn(UnitIndex unit) {
  const auto held = std::ranges::find(held_, unit, &Reduction::unit);
  if (held == held_.end()) return;
  Reduction* const reduction = *held;  // the only one of the unit
  held_.erase(held);
  HandOn(reduction);
}

// To Gradients, by tensor: of this rank's shard, or all.
void GradExchange::HandOn(Reduction* reduction) {
  if (!reduction->status().ok()) return End(reduction, reduction->status());
  const UnitLayout& unit = context_.layout->unit(reduction->unit());
  const ElementRange kept =
      shared_ ? unit.updated.shard(communicator_->rank()) : ElementRange{0, unit.updated_elements};
  const int64_t size = SizeOf(unit.types.grad);
  size_t parts = 0;
  unit.updated.ForTensors(kept, [&](size_t, ElementRange) { ++parts; });
  if (parts == 0) return End(reduction, absl::OkStatus());
  reduction->set_parts_left(parts);
  unit.updated.ForTensors(kept, [&](size_t i, ElementRange part) {
    const TensorIndex tensor = unit.tensors[i];
    const int64_t at = (context_.layout->tensor(tensor).offset + part.begin) * size;
    gradients_->Push({.tensor = tensor,
                      .data = reduction->staging().subspan(static_cast<size_t>(at),
                                                           static_cast<size_t>(part.size() * size)),
                      .first = part.begin},
                     reduction->ready(), [this, reduction](const absl::Status& status) {
                       if (reduction->OnePartDone(status)) End(reduction, reduction->status());
                     });
  });
}

void GradExchange::End(Reduction* reduction, const absl::Status& status) {
  Unit& unit = At(reduction->unit());
  context_.trace->Record(track_, "reduce", reduction->unit().value(), reduction->began(),
                         context_.clock->Now());
  if (ordered_) context_.memory->received_buffers.Give(reduction->received());
  context_.memory->staging_buffers.Give(reduction->staging());
  free_reductions_.push_back(reduction);
  --under_way_;
  unit.under_way = false;
  if (!status.ok()) {
    return context_.fail(
        Annotate(status, fmt::format("adding up the gradients of unit '{}' over ranks",
                                     context_.layout->unit(reduction->unit()).name)));
  }
  Pump();
  CollectMore();
}

void GradExchange::Fail(const absl::Status& status) {
  failed_ = status;
  const auto end_all = [&](RingQueue<Given>* queue) {
    for (; !queue->empty(); queue->pop_front()) {
      --waiting_;
      queue->front().done(status);
    }
  };
  for (Unit& unit : units_) {
    end_all(&unit.to_copy);
    end_all(&unit.later);
  }
  end_all(&next_window_);
  for (Reduction* const reduction : std::exchange(held_, {})) End(reduction, status);
}

}  // namespace sluice
