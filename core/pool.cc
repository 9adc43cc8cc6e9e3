#include "core/pool.h"

#include <algorithm>

#include "core/status.h"

namespace sluice {

BufferPool::BufferPool(MemoryView memory, Bytes buffer_size)
    : memory_(memory), buffer_size_(buffer_size) {
  if (memory.empty()) return;
  SLUICE_CHECK(buffer_size > Bytes(0));
  const size_t count = memory.size() / buffer_size.size();
  taken_.resize(count, false);
  for (size_t i = count; i > 0; --i) free_.push_back(static_cast<uint32_t>(i - 1));
}

MemoryView BufferPool::Next() {
  const uint32_t index = free_.back();
  free_.pop_back();
  taken_[index] = true;
  taken_max_ = std::max(taken_max_, taken_.size() - free_.size());
  return memory_.subspan(index * buffer_size_.size(), buffer_size_.size());
}

MemoryView BufferPool::TryTake() {
  return free_.empty() || !waiters_.empty() ? MemoryView() : Next();
}

void BufferPool::Take(Waiter* waiter) {
  const MemoryView buffer = TryTake();
  if (buffer.empty()) {
    waiters_.push_back(waiter);
    if (keeper_ != nullptr) keeper_->OnWanted();
  } else {
    waiter->OnBuffer(buffer);
  }
}

void BufferPool::Cancel(Waiter* waiter) {
  for (size_t left = waiters_.size(); left > 0; --left) {
    Waiter* const next = waiters_.front();
    waiters_.pop_front();
    if (next != waiter) waiters_.push_back(next);
  }
}

size_t BufferPool::IndexOf(MemoryView buffer) const {
  const auto offset = static_cast<size_t>(buffer.data() - memory_.data());
  SLUICE_CHECK(buffer.data() >= memory_.data() && offset % buffer_size_.size() == 0 &&
               offset / buffer_size_.size() < taken_.size() &&
               buffer.size() == buffer_size_.size());
  return offset / buffer_size_.size();
}

void BufferPool::Give(MemoryView buffer) {
  const size_t index = IndexOf(buffer);
  SLUICE_CHECK_MSG(taken_[index], "a buffer was given back twice");
  taken_[index] = false;
  free_.push_back(static_cast<uint32_t>(index));
  if (waiters_.empty()) return;
  Waiter* waiter = waiters_.front();
  waiters_.pop_front();
  waiter->OnBuffer(Next());
}

}  // namespace sluice
