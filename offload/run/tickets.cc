#include "offload/run/tickets.h"

#include <utility>

#include "absl/strings/cord.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr char kNotOpen[] = "sluice/ticket_not_open";  // a payload: a mark that is in no words

}  // namespace

Ticket Tickets::Make() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    if (entries_.size() == entries_.capacity()) entries_.reserve(2 * entries_.size() + 16);
    free_.reserve(entries_.capacity());  // so that Wait needs no memory
    free_.push_back(static_cast<uint32_t>(entries_.size()));
    entries_.push_back({.generation = first_generation_});
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  Entry& entry = entries_[index];
  entry.open = true;
  entry.done = false;
  entry.status = absl::OkStatus();
  return (static_cast<uint64_t>(entry.generation) << 32) | index;
}

Tickets::Entry* Tickets::Find(Ticket ticket) {
  const auto index = static_cast<uint32_t>(ticket);
  if (index >= entries_.size()) return nullptr;
  Entry& entry = entries_[index];
  return entry.open && entry.generation == ticket >> 32 ? &entry : nullptr;
}

void Tickets::Complete(Ticket ticket, const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    Entry* entry = Find(ticket);
    SLUICE_CHECK(entry != nullptr && !entry->done);
    entry->done = true;
    entry->status = status;
  }
  changed_.notify_all();
  if (helped_ != nullptr) helped_->WakeHelpers();
}

void Tickets::CompleteUnseen(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  Find(ticket)->done = true;
}

void Tickets::Drop(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  UseUp(Find(ticket), ticket);
}

void Tickets::UseUp(Entry* entry, Ticket ticket) {
  entry->open = false;
  if (++entry->generation != 0) free_.push_back(static_cast<uint32_t>(ticket));
}

bool Tickets::Ready(Ticket ticket) {
  const Entry* entry = Find(ticket);
  return entry == nullptr || entry->done;
}

std::optional<absl::Status> Tickets::Wait(Ticket ticket, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (!Ready(ticket) && timeout.count() > 0) {
    if (helped_ == nullptr) {
      changed_.wait_for(lock, timeout, [&] { return Ready(ticket); });
    } else {
      lock.unlock();
      const auto ready = [&] {
        const std::lock_guard again(mutex_);
        return Ready(ticket);
      };
      helped_->HelpUntil(ready, timeout);
      lock.lock();
    }
  }
  if (!Ready(ticket)) return std::nullopt;
  Entry* entry = Find(ticket);
  if (entry == nullptr) {
    absl::Status not_open = absl::InvalidArgumentError(
        fmt::format("ticket {:#x} is not open: it was waited for already, or never given", ticket));
    not_open.SetPayload(kNotOpen, absl::Cord());
    return not_open;
  }
  absl::Status status = std::move(entry->status);
  UseUp(entry, ticket);
  return status;
}

bool Tickets::SaysNotOpen(const absl::Status& result) {
  return result.GetPayload(kNotOpen).has_value();
}

}  // namespace sluice
