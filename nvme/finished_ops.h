// nvme/finished_ops.h
//
// The operations that an engine has finished and not yet handed out, in order of completion.
// Internal to engines; guarded by its user. Allocates nothing.

#ifndef SLUICE_NVME_FINISHED_OPS_H_
#define SLUICE_NVME_FINISHED_OPS_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "core/intrusive_list.h"
#include "nvme/io_engine.h"

namespace sluice {

class FinishedOps {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }

  void Push(IoOp* op) {
    list_.Push(op);
    ++size_;
  }

  // The end of Poll: moves as many to `done` as there are and fit; returns how many.
  size_t HandOut(std::span<IoOp*> done) {
    size_t n = 0;
    while (n < done.size() && !empty()) done[n++] = Pop();
    return n;
  }

  // The end of Close: drops all; returns the status of the first that failed, or ok.
  absl::Status Drop() {
    absl::Status first;
    while (!empty()) {
      const IoOp* op = Pop();
      if (first.ok()) first = op->status;
    }
    return first;
  }

 private:
  IoOp* Pop() {
    --size_;
    return list_.Pop();
  }

  IntrusiveList<IoOp> list_;
  size_t size_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_NVME_FINISHED_OPS_H_
