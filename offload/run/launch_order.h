// offload/run/launch_order.h
//
// Operations of one communicator that all ranks have agreed on, begun in that order, each as soon
// as it can be here: what waits for something of this rank's holds up those behind it, so that no
// rank calls them in another order.
//
// Threads: the control thread. Allocates when more waits than ever before.

#ifndef SLUICE_OFFLOAD_RUN_LAUNCH_ORDER_H_
#define SLUICE_OFFLOAD_RUN_LAUNCH_ORDER_H_

#include <functional>
#include <utility>

#include "core/ring_queue.h"

namespace sluice {

class LaunchOrder {
 public:
  // Begins the operation, or returns false: Pump then asks again.
  using Start = std::function<bool()>;

  void Add(Start start) {
    waiting_.push_back(std::move(start));
    Pump();
  }
  void Pump() {
    while (!stopped_ && !waiting_.empty() && waiting_.front()()) waiting_.pop_front();
  }
  bool empty() const { return waiting_.empty(); }
  void Stop() { stopped_ = true; }  // nothing is begun any more

 private:
  RingQueue<Start> waiting_;
  bool stopped_ = false;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_LAUNCH_ORDER_H_
