#include "nvme/kernel_queue_engine.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/status.h"
#include "nvme/transfer.h"

namespace sluice {

KernelQueueEngine::KernelQueueEngine(std::span<const DirectFile> files, const Limits& limits,
                                     Clock* clock)
    : files_(files), limits_(limits), clock_(clock), slots_(limits.in_flight_max) {
  for (uint32_t i = 0; i < limits.in_flight_max; ++i) free_.push_back(limits.in_flight_max - 1 - i);
  prepared_.reserve(limits.in_flight_max);
}

KernelQueueEngine::~KernelQueueEngine() {
  if (wake_fd_ >= 0) close(wake_fd_);  // not before: Wake may be called until now
}

absl::Status KernelQueueEngine::Open() {
  open_ = true;
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd_ < 0) return ErrnoStatus(errno, "creating an eventfd");
  return absl::OkStatus();
}

size_t KernelQueueEngine::Submit(std::span<IoOp* const> ops) {
  size_t taken = 0;
  for (; taken < ops.size() && in_flight() < limits_.in_flight_max; ++taken) {
    IoOp* op = ops[taken];
    op->transferred = Bytes(0);
    op->submitted = clock_->Now();
    op->status = CheckOp(*op, files_);
    const uint32_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = {.op = op};
    if (op->status.ok()) {
      prepared_.push_back(slot);
    } else {
      Finish(slot);
    }
  }
  Flush();
  return taken;
}

size_t KernelQueueEngine::Poll(std::span<IoOp*> done, Deadline deadline) {
  for (;;) {
    Reap();
    Flush();
    if (!finished_.empty() || deadline == kNoWait) break;
    if (deadline != kForever && clock_->Now() >= deadline) break;
    if (woken_.exchange(false)) break;
    Wait(deadline);
  }
  return finished_.HandOut(done);
}

void KernelQueueEngine::Wake() {
  woken_.store(true);
  const uint64_t one = 1;
  // Fails only if the counter is full, and then Poll returns from its wait anyway.
  (void)!write(wake_fd_, &one, sizeof(one));
}

absl::Status KernelQueueEngine::Close() {
  if (!open_) return absl::OkStatus();
  while (free_.size() < slots_.size()) {
    Reap();
    Flush();
    if (free_.size() < slots_.size()) Wait(kForever);
  }
  Release();
  open_ = false;
  return finished_.Drop();
}

void KernelQueueEngine::DropPrepared(size_t n) {
  prepared_.erase(prepared_.begin(), prepared_.begin() + static_cast<ptrdiff_t>(n));
}

bool KernelQueueEngine::Advance(uint32_t slot, int64_t result) {
  SLUICE_CHECK_MSG(InUse(slot), "the kernel completed an operation that is not in flight");
  if (GoesOn(slots_[slot].op, result, files_, &slots_[slot].retries)) return true;
  Finish(slot);
  return false;
}

void KernelQueueEngine::Complete(uint32_t slot, int64_t result) {
  if (Advance(slot, result)) prepared_.push_back(slot);
}

void KernelQueueEngine::ClearWakeFd() const {
  uint64_t count = 0;
  (void)!read(wake_fd_, &count, sizeof(count));
}

Nanos KernelQueueEngine::TimeLeft(Deadline deadline) const {
  return std::max(Nanos(0), deadline - clock_->Now());
}

void KernelQueueEngine::Finish(uint32_t slot) {
  IoOp* op = std::exchange(slots_[slot].op, nullptr);
  op->completed = clock_->Now();
  finished_.Push(op);
  free_.push_back(slot);
}

}  // namespace sluice
