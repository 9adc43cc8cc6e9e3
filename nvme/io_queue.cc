#include "nvme/io_queue.h"

namespace sluice {

void IoQueue::Submit() {
  for (IoOpList& list : lists_) {
    while (!list.empty()) {
      IoOp* op = list.Pop();
      if (engine_->Submit({&op, 1}) == 0) {
        list.PushFront(op);
        return;
      }
      --size_;
    }
  }
}

}  // namespace sluice
