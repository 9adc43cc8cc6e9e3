// nvme/io_queue.h
//
// What waits for room in an IoEngine, and in what order it goes: urgent operations first, each
// class of a drive first come, first served, drives in turn. A drive has a queue and a depth of its
// own, so that one which is slow, or hangs, fills its own places and no others'. Never blocks or
// refuses: admission is a list through the operations themselves.
//
// Threads: the engine's owner. Allocates at creation only.

#ifndef SLUICE_NVME_IO_QUEUE_H_
#define SLUICE_NVME_IO_QUEUE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nvme/drives.h"
#include "nvme/io_engine.h"

namespace sluice {

enum class IoPriority : uint8_t { kUrgent, kNormal };  // urgent: somebody waits, or will soon

class IoQueue {
 public:
  // `depths`: by drive, how many operations may be with the engine at a time, at least 1.
  // `file_drive`: by file.
  IoQueue(IoEngine* engine, const std::vector<uint32_t>& depths,
          std::vector<DriveIndex> file_drive);

  void Push(IoOp* op, IoPriority priority) {
    queues_[DriveOf(*op)].lists[static_cast<size_t>(priority)].Push(op);
    ++size_;
  }
  size_t size() const { return size_; }

  // Gives the engine as much as depths allow and it takes.
  void Submit();

  // The engine has handed out `op`.
  void Ended(const IoOp& op) { --queues_[DriveOf(op)].in_flight; }

 private:
  static constexpr size_t kOfferedMax = 16;
  using Offer = std::array<IoOp*, kOfferedMax>;
  struct DriveQueue {
    uint32_t depth = 1;
    uint32_t in_flight = 0;
    std::array<IntrusiveList<IoOp>, 2> lists;  // by priority
  };

  size_t DriveOf(const IoOp& op) const { return file_drive_[op.file.value()].value(); }
  size_t Gather(size_t priority, Offer* offer);

  IoEngine* const engine_;
  const std::vector<DriveIndex> file_drive_;
  std::vector<DriveQueue> queues_;  // by drive
  size_t turn_ = 0;                 // the drive that is asked first
  size_t size_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_NVME_IO_QUEUE_H_
