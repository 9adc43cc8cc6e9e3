#include "offload/run/gradient_calls.h"

#include <algorithm>
#include <utility>

namespace sluice {

GradientCalls::GradientCalls(const Context& context, Gradients* gradients, GradExchange* exchange,
                             const Updater* updater, Tickets* tickets)
    : context_(context),
      gradients_(gradients),
      exchange_(exchange),
      updater_(updater),
      tickets_(tickets),
      held_(context.layout->units().size()) {
  // One call of a unit may begin before the one before has ended; either may be held back whole.
  constexpr size_t kUnderWay = 2;
  calls_.reserve(kUnderWay);
  free_calls_.reserve(kUnderWay);
  for (size_t i = 0; i < kUnderWay; ++i) {
    calls_.push_back(std::make_unique<Call>());
    free_calls_.push_back(calls_.back().get());
  }
  size_t largest = 0;
  for (size_t u = 0; u < held_.size(); ++u) {
    const size_t tensors = context.layout->units()[u].tensors.size();
    held_[u].reserve(tensors);
    largest = std::max(largest, tensors);
  }
  going_on_.reserve(largest);
}

GradientCalls::~GradientCalls() = default;

GradientCalls::Call* GradientCalls::NewCall() {
  if (free_calls_.empty()) {
    calls_.push_back(std::make_unique<Call>());
    free_calls_.push_back(calls_.back().get());
  }
  Call* const call = free_calls_.back();
  free_calls_.pop_back();
  return call;
}

bool GradientCalls::holds() const {
  return std::ranges::any_of(held_, [](const std::vector<Held>& held) { return !held.empty(); });
}

bool GradientCalls::Take(std::span<const GivenGradient> given, Fence fence, Ticket ticket) {
  Call* const call = NewCall();
  call->ticket = ticket;
  call->left = given.size();
  call->fence = std::move(fence);
  bool any = false;
  for (const GivenGradient& gradient : given) {
    gradients_->Expect(gradient);
    const UnitIndex unit = context_.layout->tensor(gradient.tensor).unit;
    if (updater_->UnitPending(unit)) {
      held_[unit.value()].push_back({gradient, call});
    } else {
      HandOn({gradient, call});
      any = true;
    }
  }
  return any;
}

void GradientCalls::HandOn(const Held& held) {
  Call* const call = held.call;
  if (held.gradient.lent) {
    gradients_->Lend(held.gradient.tensor, held.gradient.data);
    return EndOne(call, absl::OkStatus());
  }
  auto done = [this, call](const absl::Status& status) { EndOne(call, status); };
  if (exchange_ != nullptr) {
    exchange_->Give(held.gradient.tensor, held.gradient.data, &call->fence, std::move(done));
  } else {
    gradients_->Push(held.gradient, &call->fence, std::move(done));
  }
}

void GradientCalls::EndOne(Call* call, const absl::Status& status) {
  if (call->status.ok()) call->status = status;
  if (--call->left > 0) return;
  call->fence = Fence();
  tickets_->Complete(call->ticket, std::exchange(call->status, absl::OkStatus()));
  free_calls_.push_back(call);
}

void GradientCalls::GoOn(UnitIndex unit) {
  std::vector<Held>& held = held_[unit.value()];
  going_on_.assign(held.begin(), held.end());  // no swap: each keeps the memory it has
  held.clear();
  for (const Held& one : going_on_) HandOn(one);
  going_on_.clear();
}

void GradientCalls::Forget(std::optional<TensorIndex> tensor) {
  for (std::vector<Held>& held : held_) {
    std::erase_if(held, [&](const Held& one) {
      if (tensor && one.gradient.tensor != *tensor) return false;
      EndOne(one.call, absl::OkStatus());
      return true;
    });
  }
}

void GradientCalls::Fail(const absl::Status& status) {
  for (std::vector<Held>& held : held_) {
    for (const Held& one : std::exchange(held, {})) EndOne(one.call, status);
  }
}

}  // namespace sluice
