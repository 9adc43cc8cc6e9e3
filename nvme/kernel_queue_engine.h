// nvme/kernel_queue_engine.h
//
// What the engines over a queue of the kernel (io_uring, libaio) have in common: which operation
// has which slot, what waits for the kernel to take it, what becomes of a completion, waking and
// closing. An engine adds how its kernel interface is told and asked.
//
// A kernel that refuses a call about the whole queue, with an errno that can't pass or for too
// long, breaks the engine: everything that the kernel has not taken ends with that error, now and
// from then on, and what it has is waited for without the call that it refuses.
//
// Threads and memory: as of IoEngine. Internal to engines.

#ifndef SLUICE_NVME_KERNEL_QUEUE_ENGINE_H_
#define SLUICE_NVME_KERNEL_QUEUE_ENGINE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/clock.h"
#include "nvme/finished_ops.h"
#include "nvme/io_engine.h"

namespace sluice {

class KernelQueueEngine : public IoEngine {
 public:
  size_t Submit(std::span<IoOp* const> ops) final;
  size_t Poll(std::span<IoOp*> done, Deadline deadline) final;
  void Wake() final;
  size_t in_flight() const final { return slots_.size() - free_.size() + finished_.size(); }
  absl::Status Close() final;

 protected:
  KernelQueueEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock);
  ~KernelQueueEngine() override;  // after the engine's own, which calls Close

  // To be called when the kernel's queue is made: from now on Close calls Release, and there is a
  // wake_fd. Errors: the kernel has no eventfd for us.
  absl::Status Open();

  // Reads the beginning of the first file, if there is one, so that a kernel which sets queues up
  // and then forbids their use is found out. Errors: what this or a wait has met; if something is
  // in flight then, the engine must never be deleted.
  absl::Status TryOut();

  // Hands what is prepared to the kernel, in order, submit_batch_max at a time. What it won't take
  // now stays, for a later call.
  virtual void Flush() = 0;
  // Consumes every completion there is, and calls Complete for each.
  virtual void Reap() = 0;
  // Returns when something was completed, when wake_fd counts, at the deadline, or for no reason.
  virtual void Wait(Deadline deadline) = 0;
  // The engine has broken: ends (Fail) what the kernel has not taken, or gives back, beyond what is
  // prepared. May be called again if something stays.
  virtual void Abandon() = 0;
  // Gives the kernel's queue back; nothing is in it.
  virtual void Release() = 0;

  // A slot is one operation's from Submit until it is finished; the rest of its transfer (RestOf)
  // is prepared, or the kernel has it. Slots are below in_flight_max.
  const IoOp& op(uint32_t slot) const { return *slots_[slot].op; }
  bool InUse(uint32_t slot) const { return slot < slots_.size() && slots_[slot].op != nullptr; }
  // Slots whose rest is for the kernel to take, in order.
  std::span<const uint32_t> prepared() const { return prepared_; }
  void DropPrepared(size_t n);  // the first n

  // Takes in `result`, as the kernel returns it, of what it was to transfer for `slot`. Returns
  // whether to go on with the rest; otherwise the operation is finished and the slot free.
  bool Advance(uint32_t slot, int64_t result);
  // The same when the kernel had it; if there is a rest, it is prepared.
  void Complete(uint32_t slot, int64_t result);

  // The kernel refused `call` with `error`. If that may pass, it is to be tried again after a
  // pause; otherwise, and if it has not passed for long, the engine is broken.
  void Refused(const char* call, int error);
  void Progressed() { refusals_ = 0; }  // it took something, or ended something
  bool paused() const { return refusals_ > 0 && clock_->Now() < retry_at_; }
  bool broken() const { return !broken_.ok(); }
  void Fail(uint32_t slot);  // ends the operation with what broke the engine
  // The kernel can't be made to give back what it has, which stays in flight; wakes who waits.
  void KeptInKernel() {
    kept_ = true;
    Wake();
  }

  // Waits until wake_fd, which is cleared, or `queue_fd` (-1: none) is readable, or the deadline.
  // Where the kernel refuses that too, it sleeps for a moment, and waiting() says so.
  void WaitForFds(int queue_fd, Deadline deadline);
  std::string waiting() const;  // "", or "; waits by sleeping (ppoll: EPERM)"; any thread

  std::span<const DirectFile> files() const { return files_; }
  const Limits& limits() const { return limits_; }
  int wake_fd() const { return wake_fd_; }  // an eventfd that Wake adds to
  void ClearWakeFd() const;                 // to 0; Poll still knows that it was woken
  Nanos TimeLeft(Deadline deadline) const;  // not below 0; the deadline is not kForever

 private:
  struct Slot {
    IoOp* op = nullptr;
    int retries = 0;
  };

  void Finish(uint32_t slot);

  const std::span<const DirectFile> files_;
  const Limits limits_;
  Clock* const clock_;
  bool open_ = false;
  int wake_fd_ = -1;
  std::atomic<bool> woken_{false};  // by Wake; set before wake_fd counts
  std::atomic<int> poll_error_{0};  // the errno with which ppoll was refused
  int refusals_ = 0;                // of the queue, in a row
  TimePoint refused_since_;         // when the first of them came
  TimePoint retry_at_{0};           // after the last
  absl::Status broken_;             // why the engine is
  bool kept_ = false;               // see KeptInKernel
  // TryOut's read: the engine's, since the kernel may keep it.
  IoOp trial_;
  std::unique_ptr<std::byte, decltype(&std::free)> trial_memory_{nullptr, &std::free};
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> prepared_;
  FinishedOps finished_;
};

}  // namespace sluice

#endif  // SLUICE_NVME_KERNEL_QUEUE_ENGINE_H_
