// core/intrusive_list.h
//
// A first-come, first-served list through its elements themselves, which it does not own. T has a
// member `T* next_` that belongs to the list, and befriends IntrusiveList<T>; an element is in at
// most one list.
//
// Threads: guarded by its user. Allocates nothing.

#ifndef SLUICE_CORE_INTRUSIVE_LIST_H_
#define SLUICE_CORE_INTRUSIVE_LIST_H_

#include <utility>

namespace sluice {

template <typename T>
class IntrusiveList {
 public:
  IntrusiveList() = default;
  IntrusiveList(IntrusiveList&& other) noexcept
      : head_(std::exchange(other.head_, nullptr)), tail_(other.tail_) {}
  IntrusiveList& operator=(IntrusiveList&& other) noexcept {  // drops what it held
    head_ = std::exchange(other.head_, nullptr);
    tail_ = other.tail_;
    return *this;
  }

  bool empty() const { return head_ == nullptr; }

  void Push(T* element) {
    element->next_ = nullptr;
    (head_ == nullptr ? head_ : tail_->next_) = element;
    tail_ = element;
  }
  void PushFront(T* element) {
    element->next_ = head_;
    if (head_ == nullptr) tail_ = element;
    head_ = element;
  }

  // The first element, which may be destroyed or listed again from then on. Not of an empty list.
  T* Pop() {
    T* element = head_;
    head_ = element->next_;
    return element;
  }

 private:
  T* head_ = nullptr;
  T* tail_ = nullptr;  // of a list that is not empty
};

}  // namespace sluice

#endif  // SLUICE_CORE_INTRUSIVE_LIST_H_
