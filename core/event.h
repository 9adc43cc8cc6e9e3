// core/event.h
//
// How the control thread hears of what happened elsewhere. Whoever finishes something (a worker, a
// device stream, a caller of the API) posts an Event; the control thread takes all that came, in
// order, and handles each. An Event is owned by its poster, lives until it has been handled, and
// may be posted again from then on; posting never allocates, blocks or fails.

#ifndef SLUICE_CORE_EVENT_H_
#define SLUICE_CORE_EVENT_H_

#include <atomic>

namespace sluice {

// Anything that can be told to stop waiting. Thread-safe.
class Waker {
 public:
  virtual ~Waker() = default;
  virtual void Wake() = 0;
};

class Event {
 public:
  virtual ~Event() = default;
  virtual void Handle() = 0;  // on the control thread

 private:
  friend class Inbox;
  Event* next_ = nullptr;
};

// A multi-producer, single-consumer list of events.
class Inbox {
 public:
  // `waker` (not owned) is woken whenever an event arrives in an empty inbox. Set before the first
  // Post.
  void SetWaker(Waker* waker) { waker_ = waker; }

  void Post(Event* event);  // any thread; `event` must not be in an inbox

  // Handles all events that have arrived, in order of arrival; those that they post in turn are
  // left for the next call. Returns whether there was any. Control thread only.
  bool HandleAll();

  bool empty() const { return head_.load(std::memory_order_acquire) == nullptr; }

 private:
  std::atomic<Event*> head_{nullptr};  // newest first
  Waker* waker_ = nullptr;
};

}  // namespace sluice

#endif  // SLUICE_CORE_EVENT_H_
