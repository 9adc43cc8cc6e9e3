#include "nvme/kernel_queue_engine.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
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
    if (!op->status.ok()) {
      Finish(slot);
    } else if (broken()) {
      Fail(slot);
    } else {
      prepared_.push_back(slot);
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
    // Not paused(): the pause may end between the look above and this one.
    Wait(refusals_ > 0 ? std::min(deadline, retry_at_) : deadline);
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
    if (free_.size() < slots_.size()) Wait(refusals_ > 0 ? retry_at_ : kForever);
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
  Progressed();
  if (!Advance(slot, result)) return;
  broken() ? Fail(slot) : prepared_.push_back(slot);
}

absl::Status KernelQueueEngine::TryOut() {
  if (!files_.empty() && files_[0].size() >= files_[0].alignment()) {
    const size_t size = files_[0].alignment().size();
    const size_t alignment = std::max(size, alignof(std::max_align_t));
    trial_memory_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, alignment)));
    if (trial_memory_ == nullptr) return absl::ResourceExhaustedError("out of memory");
    trial_.memory = {trial_memory_.get(), size};
    IoOp* ops[] = {&trial_};
    SLUICE_CHECK(Submit(ops) == 1);
    while (Poll(ops, kForever) == 0) {
      if (kept_) return broken_;
    }
    trial_memory_.reset();
    SLUICE_RETURN_IF_ERROR(trial_.status);
  }
  if (const int error = poll_error_; error != 0) return ErrnoStatus(error, "waiting with ppoll");
  return broken_;
}

void KernelQueueEngine::Refused(const char* call, int error) {
  const bool passes = error == EINTR || error == EAGAIN || error == EBUSY || error == ENOMEM;
  const TimePoint now = clock_->Now();
  if (refusals_ == 0) refused_since_ = now;
  if (passes && now - refused_since_ < limits().refused_max) {
    retry_at_ = now + std::chrono::milliseconds(1 << std::min(refusals_++, 4));
    return;
  }
  refusals_ = 0;
  const char* hint =
      error == EPERM || error == EACCES || error == ENOSYS
          ? " (forbidden here: see the container's seccomp profile, or choose another engine)"
          : "";
  broken_ = ErrnoStatus(error, fmt::format("{}{}", call, hint));
  Abandon();
  for (const uint32_t slot : prepared_) Fail(slot);
  prepared_.clear();
}

void KernelQueueEngine::Fail(uint32_t slot) {
  IoOp* op = slots_[slot].op;
  op->status = Annotate(broken_, OpName(*op));
  Finish(slot);
}

void KernelQueueEngine::WaitForFds(int queue_fd, Deadline deadline) {
  pollfd events[] = {
      {.fd = wake_fd_, .events = POLLIN, .revents = 0},
      {.fd = queue_fd, .events = POLLIN, .revents = 0}};  // a negative one is not looked at
  const Nanos left = deadline == kForever ? Nanos(0) : TimeLeft(deadline);
  const timespec timeout{.tv_sec = left.count() / 1'000'000'000,
                         .tv_nsec = left.count() % 1'000'000'000};
  const int result = ppoll(events, 2, deadline == kForever ? nullptr : &timeout, nullptr);
  if (result < 0 && errno != EINTR) {
    poll_error_ = errno;
    const Nanos moment = std::chrono::milliseconds(1);
    std::this_thread::sleep_for(deadline == kForever ? moment : std::min(moment, left));
  }
  if (result < 0 || events[0].revents != 0) ClearWakeFd();
}

std::string KernelQueueEngine::waiting() const {
  const int error = poll_error_;
  return error == 0 ? "" : fmt::format("; waits by sleeping (ppoll: {})", ErrnoName(error));
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
