// offload/run/tickets.h
//
// Tickets: how callers on any thread wait for what the control thread does. A ticket is a number
// with a generation, so that a used-up or invented one is noticed. No number is given twice: an
// entry whose generations are used up is not used again. Who waits helps an executor meanwhile, if
// there is one to help.
//
// Threads: any. A full table grows; nothing else allocates.

#ifndef SLUICE_OFFLOAD_RUN_TICKETS_H_
#define SLUICE_OFFLOAD_RUN_TICKETS_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "core/executor.h"

namespace sluice {

using Ticket = uint64_t;  // never 0

class Tickets {
 public:
  // `helped` (not owned) may be null: who waits only sleeps. Tests begin near the last generation.
  explicit Tickets(Executor* helped = nullptr, uint32_t first_generation = 1)
      : helped_(helped), first_generation_(first_generation) {}

  Ticket Make();
  void Complete(Ticket ticket, const absl::Status& status);
  // Of one that nobody knows yet: it is done, well; or it was never made.
  void CompleteUnseen(Ticket ticket);
  void Drop(Ticket ticket);

  // The result, and the ticket is used up; nothing if it is not done by the end of `timeout`.
  // Errors (as the result): InvalidArgument for a ticket that is not open.
  std::optional<absl::Status> Wait(Ticket ticket, std::chrono::milliseconds timeout);

  // Whether Wait returned `result` since the ticket is not open. No operation's own error is one.
  static bool SaysNotOpen(const absl::Status& result);

 private:
  struct Entry {
    uint32_t generation;  // never 0
    bool open = false;
    bool done = false;
    absl::Status status;
  };
  Entry* Find(Ticket ticket);
  void UseUp(Entry* entry, Ticket ticket);
  bool Ready(Ticket ticket);  // mutex_ is held

  Executor* const helped_;
  const uint32_t first_generation_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> entries_;  // guarded by mutex_
  std::vector<uint32_t> free_;  // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_TICKETS_H_
