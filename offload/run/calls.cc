#include "offload/run/calls.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"

namespace sluice {

Calls::Calls(Inbox* inbox, Event* arrived) : inbox_(inbox), arrived_(arrived) {
  calls_.reserve(2 * kQuietMax);
  capacity_ = calls_.capacity();
}

Calls::Place::Place(Calls* calls) : calls_(calls) {
  if (++calls->placed_ > calls->capacity_) calls->Grow();
}

Calls::Place::~Place() {
  if (calls_ != nullptr) --calls_->placed_;
}

// For a place that was counted; if there is no memory, it no longer is.
void Calls::Grow() {
  absl::Cleanup give_back = [this] { --placed_; };
  {
    const std::lock_guard lock(mutex_);
    const size_t placed = placed_;
    if (placed > calls_.capacity()) calls_.reserve(std::max(placed, 2 * calls_.capacity()));
    capacity_ = calls_.capacity();
  }
  std::move(give_back).Cancel();
}

void Calls::Put(Call call, Heed heed) {
  if (std::holds_alternative<std::unique_ptr<Turn>>(call)) ++turns_;
  {
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(call));  // there is room
    sent_ = calls_.size();
    if (heed == Heed::kSometime && calls_.size() < kQuietMax && !heeded_) return;
    if (std::exchange(announced_, true)) return;
  }
  inbox_->Post(arrived_);
}

void Calls::Heard() {
  const std::lock_guard lock(mutex_);
  announced_ = false;  // here, where the inbox no longer has the event, and nowhere else
}

void Calls::Take(RingQueue<Call>* to) {
  const std::lock_guard lock(mutex_);
  for (Call& call : calls_) to->push_back(std::move(call));
  placed_ -= calls_.size();
  calls_.clear();
  sent_ = 0;
}

}  // namespace sluice
