#include "offload/run/call_record.h"

#include <algorithm>
#include <utility>

namespace sluice {

CallRecord::CallRecord(const Clock* clock) : clock_(clock) {
  if (clock_ == nullptr) return;
  calls_.reserve(kCallsMax);
  last_.reserve(kCallsMax);
}

void CallRecord::Called(RecordedCall::Kind kind, int64_t index, Ticket ticket) {
  if (clock_ == nullptr) return;
  const TimePoint now = clock_->Now();
  const std::lock_guard lock(mutex_);
  if (!std::exchange(waiting_, false)) own_ += now - since_;
  since_ = now;
  Add(kind, index, ticket);
  if (kind == RecordedCall::Kind::kStep) EndStep(ticket);
}

void CallRecord::Disturbed() {
  const std::lock_guard lock(mutex_);
  keep_ = false;
}

std::vector<RecordedCall> CallRecord::last_step() const {
  const std::lock_guard lock(mutex_);
  std::vector<RecordedCall> calls;
  calls.reserve(last_.size());
  for (const Entry& entry : last_) calls.push_back(entry.call);
  return calls;
}

void CallRecord::WaitBegins() {
  if (clock_ == nullptr) return;
  const TimePoint now = clock_->Now();
  const std::lock_guard lock(mutex_);
  if (!std::exchange(waiting_, true)) own_ += now - since_;
}

void CallRecord::WaitEnds(Ticket ticket) {
  if (clock_ == nullptr) return;
  const TimePoint now = clock_->Now();
  const std::lock_guard lock(mutex_);
  waiting_ = false;
  since_ = now;
  if (ticket == step_before_ && stepped_)
    return Add(RecordedCall::Kind::kWait, RecordedCall::kStepBefore, 0);
  const size_t from = calls_.size() - std::min(calls_.size(), kLookBack);
  for (size_t i = calls_.size(); i > from; --i) {
    if (calls_[i - 1].ticket != ticket) continue;
    return Add(RecordedCall::Kind::kWait, static_cast<int64_t>(i - 1), 0);
  }
}

void CallRecord::Add(RecordedCall::Kind kind, int64_t index, Ticket ticket) {
  keep_ = keep_ && calls_.size() < kCallsMax;
  const Nanos own = std::exchange(own_, Nanos(0));
  if (keep_)
    calls_.push_back({.call = {.kind = kind, .index = index, .own = own}, .ticket = ticket});
}

void CallRecord::EndStep(Ticket ticket) {
  if (stepped_ && keep_) std::swap(calls_, last_);
  calls_.clear();
  step_before_ = ticket;
  stepped_ = keep_ = true;
}

}  // namespace sluice
