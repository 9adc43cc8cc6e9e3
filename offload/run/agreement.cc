#include "offload/run/agreement.h"

#include <algorithm>

namespace sluice {

namespace {
template <typename T>
std::span<std::byte> BytesOf(T* value) {
  return std::as_writable_bytes(std::span(value, 1));
}
}  // namespace

Agreement::Agreement(Communicator* communicator, Clock* clock, Inbox* inbox, Metrics* metrics,
                     Observer* observer)
    : communicator_(communicator),
      clock_(clock),
      inbox_(inbox),
      observer_(observer),
      heard_(communicator->ranks()),
      send_(BytesOf(&message_)),
      ends_(EndsOfOneEach(communicator->ranks())),
      pace_(communicator->rank(), communicator->ranks()),
      rounds_(metrics->Get("agreement_rounds")) {
  for (Message& message : heard_) receive_.emplace_back(BytesOf(&message));
  op_.kind = CommKind::kAllGather;
  op_.send.views = std::span(&send_, 1);
  op_.receive = {.views = receive_, .ends = ends_};
  op_.inbox = inbox_;
  op_.event = this;
}

void Agreement::Say(Said said) {
  to_say_.push_back(said);
  if (!failure_.ok()) return observer_->OnDisagreement(failure_);
  Poll();
}

void Agreement::Poll() {
  if (in_round_ || stopped_) return;
  if (!to_say_.empty() || clock_->Now() >= next_time_) Begin();
}

void Agreement::Begin() {
  message_.count = std::min(to_say_.size(), kSaidMax);
  for (size_t i = 0; i < message_.count; ++i) {
    message_.said[i] = to_say_.front();
    to_say_.pop_front();
  }
  in_round_ = true;
  began_ = clock_->Now();
  ++op_.tag;
  communicator_->Enqueue(&op_);
}

void Agreement::Handle() {
  if (stopped_) {
    in_round_ = false;
    return;
  }
  if (!op_.status.ok()) {
    in_round_ = false;
    stopped_ = true;
    failure_ = op_.status;
    return observer_->OnDisagreement(failure_);
  }
  rounds_->Add();
  bool any = false;
  for (uint32_t r = 0; r < heard_.size(); ++r) {
    for (size_t i = 0; i < heard_[r].count; ++i) {
      any = true;
      pace_.OnSaid(Rank(r), heard_[r].said[i].topic);
      if (!stopped_) observer_->OnSaid(Rank(r), heard_[r].said[i]);
    }
  }
  in_round_ = false;  // not before: what follows from what was heard is said in the next one
  next_time_ = clock_->Now() + pace_.PauseAfter(any);
  Poll();
}

}  // namespace sluice
