#include "nvme/io_queue.h"

namespace sluice {

void IoQueue::Submit() {
  std::array<IoOp*, 16> offered;
  for (IntrusiveList<IoOp>& list : lists_) {
    while (!list.empty()) {
      size_t n = 0;
      while (n < offered.size() && !list.empty()) offered[n++] = list.Pop();
      const size_t taken = engine_->Submit({offered.data(), n});
      size_ -= taken;
      for (size_t i = n; i > taken; --i) list.PushFront(offered[i - 1]);
      if (taken < n) return;
    }
  }
}

}  // namespace sluice
