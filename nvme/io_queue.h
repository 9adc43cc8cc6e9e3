// nvme/io_queue.h
//
// What waits for room in an IoEngine, and in what order it goes: urgent operations first, each
// class first come, first served. Never blocks or refuses: admission is a list through the
// operations themselves.
//
// Threads: the engine's owner. Allocates nothing.

#ifndef SLUICE_NVME_IO_QUEUE_H_
#define SLUICE_NVME_IO_QUEUE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "nvme/io_engine.h"

namespace sluice {

enum class IoPriority : uint8_t { kUrgent, kNormal };  // urgent: somebody waits, or will soon

class IoQueue {
 public:
  explicit IoQueue(IoEngine* engine) : engine_(engine) {}

  void Push(IoOp* op, IoPriority priority) {
    lists_[static_cast<size_t>(priority)].Push(op);
    ++size_;
  }
  size_t size() const { return size_; }

  // Gives the engine as much as it takes.
  void Submit();

 private:
  IoEngine* const engine_;
  std::array<IntrusiveList<IoOp>, 2> lists_;
  size_t size_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_NVME_IO_QUEUE_H_
