#include "nvme/io_queue.h"

#include <utility>

namespace sluice {

IoQueue::IoQueue(IoEngine* engine, const std::vector<uint32_t>& depths,
                 std::vector<DriveIndex> file_drive)
    : engine_(engine), file_drive_(std::move(file_drive)), queues_(depths.size()) {
  for (size_t d = 0; d < depths.size(); ++d) queues_[d].depth = depths[d];
}

void IoQueue::Submit() {
  Offer offer;
  for (size_t priority = 0; priority < 2; ++priority) {
    while (size_ > 0) {
      const size_t n = Gather(priority, &offer);
      if (n == 0) break;
      const size_t taken = engine_->Submit({offer.data(), n});
      size_ -= taken;
      if (taken == n) continue;
      for (size_t i = n; i > taken; --i) {
        DriveQueue& queue = queues_[DriveOf(*offer[i - 1])];
        queue.lists[priority].PushFront(offer[i - 1]);
        --queue.in_flight;
      }
      turn_ = DriveOf(*offer[taken]);
      return;
    }
  }
}

// Takes from the lists, one of each drive in turn, what their depths allow.
size_t IoQueue::Gather(size_t priority, Offer* offer) {
  size_t n = 0;
  for (size_t none = 0; n < offer->size() && none < queues_.size();) {
    DriveQueue& queue = queues_[turn_];
    turn_ = (turn_ + 1) % queues_.size();
    if (queue.in_flight == queue.depth || queue.lists[priority].empty()) {
      ++none;
      continue;
    }
    none = 0;
    ++queue.in_flight;
    (*offer)[n++] = queue.lists[priority].Pop();
  }
  return n;
}

}  // namespace sluice
