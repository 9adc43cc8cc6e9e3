// core/ring_queue.h
//
// A first-come, first-served queue that keeps its memory: it allocates only when it is longer than
// ever before. Elements are moved when it does; T{} must cost nothing.
//
// Threads: guarded by its user.

#ifndef SLUICE_CORE_RING_QUEUE_H_
#define SLUICE_CORE_RING_QUEUE_H_

#include <cstddef>
#include <utility>
#include <vector>

namespace sluice {

template <typename T>
class RingQueue {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T& front() { return slots_[first_]; }
  T& operator[](size_t i) { return slots_[(first_ + i) % slots_.size()]; }

  void push_back(T value) {
    if (size_ == slots_.size()) Grow();
    (*this)[size_++] = std::move(value);
  }
  void pop_front() {  // the element is gone
    slots_[first_] = T{};
    first_ = (first_ + 1) % slots_.size();
    --size_;
  }
  void pop_back() { (*this)[--size_] = T{}; }

 private:
  void Grow() {
    std::vector<T> larger(slots_.empty() ? 4 : 2 * slots_.size());
    for (size_t i = 0; i < size_; ++i) larger[i] = std::move((*this)[i]);
    slots_ = std::move(larger);
    first_ = 0;
  }

  std::vector<T> slots_;
  size_t first_ = 0;
  size_t size_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_CORE_RING_QUEUE_H_
