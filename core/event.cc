#include "core/event.h"

#include <utility>

namespace sluice {

void Inbox::Post(Event* event) {
  Event* head = head_.load(std::memory_order_relaxed);
  do {
    event->next_ = head;
  } while (!head_.compare_exchange_weak(head, event, std::memory_order_release,
                                        std::memory_order_relaxed));
  if (head == nullptr && waker_ != nullptr) waker_->Wake();
}

bool Inbox::HandleAll() {
  Event* newest = head_.exchange(nullptr, std::memory_order_acquire);
  Event* oldest = nullptr;
  while (newest != nullptr) {
    Event* next = std::exchange(newest->next_, oldest);
    oldest = newest;
    newest = next;
  }
  const bool any = oldest != nullptr;
  while (oldest != nullptr) {
    Event* event = oldest;
    oldest = std::exchange(event->next_, nullptr);  // before Handle: it may post the event again
    event->Handle();
  }
  return any;
}

}  // namespace sluice
