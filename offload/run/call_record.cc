#include "offload/run/call_record.h"

#include <algorithm>
#include <utility>

#include "offload/run/gradients.h"

namespace sluice {

CallRecord::CallRecord(const Clock* clock) : clock_(clock) {
  if (clock_ == nullptr) return;
  calls_.reserve(kCallsMax);
  last_.reserve(kCallsMax);
}

void CallRecord::Called(RecordedCall::Kind kind, int64_t index, Ticket ticket) {
  if (clock_ == nullptr) return;
  const std::lock_guard lock(mutex_);
  EndOwn(true);
  Add(kind, index, ticket);
  if (kind == RecordedCall::Kind::kStep) EndStep(ticket);
}

void CallRecord::CalledGrads(std::span<const GivenGradient> given, Ticket ticket) {
  if (clock_ == nullptr) return;
  const std::lock_guard lock(mutex_);
  EndOwn(true);
  for (const GivenGradient& one : given) {
    const bool first = &one == given.data();
    Add(first ? RecordedCall::Kind::kGrads : RecordedCall::Kind::kMoreGrads, one.tensor.value(),
        first ? ticket : 0);
  }
}

// What the caller has had of its own since the last call; it goes on from here if `goes_on`.
void CallRecord::EndOwn(bool goes_on) {
  const TimePoint now = clock_->Now();
  if (!std::exchange(waiting_, !goes_on)) own_ += now - since_;
  if (goes_on) since_ = now;
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
  const std::lock_guard lock(mutex_);
  EndOwn(false);
}

void CallRecord::WaitEnds(Ticket ticket) {
  if (clock_ == nullptr) return;
  const std::lock_guard lock(mutex_);
  waiting_ = false;
  since_ = clock_->Now();
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
  const Nanos own = std::min(std::exchange(own_, Nanos(0)), kOwnMax);
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
