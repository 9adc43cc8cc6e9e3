// core/device_queue.h
//
// The queue that a stream is: operations in the order they were enqueued. Guarded by its user.
// Internal to devices.

#ifndef SLUICE_CORE_DEVICE_QUEUE_H_
#define SLUICE_CORE_DEVICE_QUEUE_H_

#include "core/device.h"

namespace sluice {

class DeviceQueue {
 public:
  bool empty() const { return head_ == nullptr; }
  void Push(DeviceOp* op) {
    op->next_ = nullptr;
    (head_ == nullptr ? head_ : tail_->next_) = op;
    tail_ = op;
  }
  DeviceOp* Pop() {
    DeviceOp* op = head_;
    head_ = op->next_;
    return op;
  }

 private:
  DeviceOp* head_ = nullptr;
  DeviceOp* tail_ = nullptr;
};

}  // namespace sluice

#endif  // SLUICE_CORE_DEVICE_QUEUE_H_
