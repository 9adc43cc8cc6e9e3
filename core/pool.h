// core/pool.h
//
// A BufferPool gives out equal buffers of memory it does not own, and never more than it has:
// a caller is refused (TryTake) or waits its turn (Take). Waiters are served first come, first
// served, before any TryTake.
//
// Threads: one (the control thread). Allocates at construction only.

#ifndef SLUICE_CORE_POOL_H_
#define SLUICE_CORE_POOL_H_

#include <cstdint>
#include <vector>

#include "core/ring_queue.h"
#include "core/types.h"

namespace sluice {

class BufferPool {
 public:
  // Waits for a buffer; owned by the caller until OnBuffer was called or Cancel returned.
  class Waiter {
   public:
    virtual ~Waiter() = default;
    virtual void OnBuffer(MemoryView buffer) = 0;  // called from Take or from another's Give
  };

  // Who keeps buffers that it could give back.
  class Keeper {
   public:
    virtual ~Keeper() = default;
    // One more waiter waits. May give back one now or later, or none.
    virtual void OnWanted() = 0;
  };

  BufferPool() = default;
  // As many buffers of `buffer_size` as fit in `memory`.
  BufferPool(MemoryView memory, Bytes buffer_size);

  // A free buffer, or an empty view if there is none or somebody waits.
  MemoryView TryTake();
  void Take(Waiter* waiter);     // calls waiter->OnBuffer now or later
  void Cancel(Waiter* waiter);   // a waiter that no longer wants one
  void Give(MemoryView buffer);  // exactly what was taken; checked: one of ours, and taken
  size_t waiting() const { return waiters_.size(); }
  void SetKeeper(Keeper* keeper) { keeper_ = keeper; }  // not owned; null: there is none

  Bytes buffer_size() const { return buffer_size_; }
  size_t count() const { return taken_.size(); }
  size_t free_count() const { return free_.size(); }
  size_t taken_max() const { return taken_max_; }  // most ever out at a time

 private:
  size_t IndexOf(MemoryView buffer) const;
  MemoryView Next();

  MemoryView memory_;
  Bytes buffer_size_;
  std::vector<uint32_t> free_;
  std::vector<bool> taken_;
  RingQueue<Waiter*> waiters_;
  Keeper* keeper_ = nullptr;
  size_t taken_max_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_CORE_POOL_H_
