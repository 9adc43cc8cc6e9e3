// offload/run/door.h
//
// How a caller's thread takes a unit that is there, without asking the control thread: through a
// door, which the control thread keeps open while the unit may be used as it is. Who has entered
// holds the unit; the control thread hears of it later, in the order of the calls, and until then
// counts whoever is inside but not yet announced.
//
// Threads: Enter and Leave on any, the rest on the control thread. Allocates nothing.

#ifndef SLUICE_OFFLOAD_RUN_DOOR_H_
#define SLUICE_OFFLOAD_RUN_DOOR_H_

#include <atomic>
#include <cstdint>

namespace sluice {

class Door {
 public:
  // Whether the door was open. What the control thread wrote before it opened is seen then.
  bool Enter() {
    uint32_t seen = word_.load(std::memory_order_relaxed);
    do {
      if ((seen & kOpen) == 0) return false;
    } while (!word_.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return true;
  }

  void Leave() { word_.fetch_sub(1, std::memory_order_release); }  // who will not be announced

  void Open() { word_.fetch_or(kOpen, std::memory_order_release); }
  // Nobody enters any more. Returns whether nobody is inside who wasn't announced.
  bool Close() { return (word_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen) == 0; }
  void Announced() { word_.fetch_sub(1, std::memory_order_relaxed); }  // one who had entered
  bool anyone_inside() const { return (word_.load(std::memory_order_acquire) & ~kOpen) != 0; }

 private:
  static constexpr uint32_t kOpen = uint32_t{1} << 31;
  std::atomic<uint32_t> word_{0};  // kOpen, and how many have entered unannounced
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_DOOR_H_
