#include "nvme/uring_engine.h"

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

constexpr uint64_t kWakeTag = ~uint64_t{0};
constexpr Bytes kRegisteredPiece = GiB(1);  // a larger single buffer is refused with EFAULT
constexpr Bytes kTransferMax = GiB(1);

class UringEngine final : public IoEngine {
 public:
  UringEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock)
      : files_(files), limits_(limits), clock_(clock), slots_(limits.in_flight_max) {
    for (uint32_t i = 0; i < limits.in_flight_max; ++i)
      free_.push_back(limits.in_flight_max - 1 - i);
    finished_.reserve(limits.in_flight_max);
    prepared_.reserve(limits.in_flight_max);
  }
  ~UringEngine() override {
    (void)Close();
    if (wake_fd_ >= 0) close(wake_fd_);  // not before: Wake may be called until now
  }

  absl::Status Init(std::span<const MemoryView> arenas) {
    io_uring_params params{};
    // The flag lets Poll(kNoWait) see that the kernel has completions to post, and go and get them.
    params.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    int result = io_uring_queue_init_params(limits_.in_flight_max + 8, &ring_, &params);
    if (result == -EINVAL) {
      params = {};
      result = io_uring_queue_init_params(limits_.in_flight_max + 8, &ring_, &params);
    }
    if (result < 0) {
      const char* hint = result == -EPERM
                             ? " (forbidden here: see sysctl kernel.io_uring_disabled, or the "
                               "container's seccomp profile)"
                         : result == -ENOMEM ? " (raise the limit on locked memory: ulimit -l)"
                                             : "";
      return ErrnoStatus(-result, fmt::format("setting up io_uring{}", hint));
    }
    open_ = true;
    if ((ring_.features & IORING_FEAT_NODROP) == 0 || (ring_.features & IORING_FEAT_EXT_ARG) == 0) {
      return absl::UnavailableError(
          "this kernel's io_uring is too old (needs NODROP and EXT_ARG: Linux 5.11)");
    }
    wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd_ < 0) return ErrnoStatus(errno, "creating an eventfd");
    RegisterFiles();
    RegisterBuffers(arenas);
    return absl::OkStatus();
  }

  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    for (; taken < ops.size() && in_flight() < limits_.in_flight_max; ++taken) {
      IoOp* op = ops[taken];
      op->transferred = Bytes(0);
      op->submitted = clock_->Now();
      op->status = CheckOp(*op, files_);
      const uint32_t slot = free_.back();
      free_.pop_back();
      slots_[slot].op = op;
      slots_[slot].retries = 0;
      if (op->status.ok()) {
        Prepare(slot);
      } else {
        Finish(slot);
      }
    }
    Flush();
    return taken;
  }

  size_t Poll(std::span<IoOp*> done, Deadline deadline) override {
    for (;;) {
      Reap();
      Flush();
      if (!finished_.empty() || deadline == kNoWait) break;
      if (deadline != kForever && clock_->Now() >= deadline) break;
      if (std::exchange(woken_, false)) break;
      Wait(deadline);
    }
    const size_t n = std::min(done.size(), finished_.size());
    std::copy_n(finished_.begin(), n, done.begin());
    finished_.erase(finished_.begin(), finished_.begin() + static_cast<ptrdiff_t>(n));
    return n;
  }

  void Wake() override {
    const uint64_t one = 1;
    // Fails only if the counter is full, and then a wake-up is pending anyway.
    (void)!write(wake_fd_, &one, sizeof(one));
  }

  size_t in_flight() const override { return slots_.size() - free_.size() + finished_.size(); }

  std::string description() const override {
    return fmt::format("io_uring: {}, {}, {} in flight, {} per submission, no SQPOLL",
                       files_description_, buffers_description_, limits_.in_flight_max,
                       limits_.submit_batch_max);
  }

  absl::Status Close() override {
    if (!open_) return absl::OkStatus();
    while (free_.size() < slots_.size()) {
      Reap();
      Flush();
      if (free_.size() < slots_.size()) Wait(kForever);
    }
    absl::Status first;
    for (const IoOp* op : finished_) {
      if (first.ok()) first = op->status;
    }
    finished_.clear();
    io_uring_queue_exit(&ring_);
    open_ = false;
    return first;
  }

 private:
  struct Slot {
    IoOp* op = nullptr;
    uint32_t generation = 0;
    int retries = 0;
  };

  void RegisterFiles() {
    std::vector<int> fds;
    for (const DirectFile& file : files_) fds.push_back(file.fd());
    if (fds.empty()) return;
    const int result =
        io_uring_register_files(&ring_, fds.data(), static_cast<unsigned>(fds.size()));
    fixed_files_ = result == 0;
    files_description_ = fixed_files_
                             ? "registered files"
                             : fmt::format("files not registered ({})", strerrorname_np(-result));
  }

  void RegisterBuffers(std::span<const MemoryView> arenas) {
    if (files_.empty()) return;
    for (const MemoryView& arena : arenas) {
      for (size_t at = 0; at < arena.size(); at += kRegisteredPiece.size()) {
        const size_t n = std::min(kRegisteredPiece.size(), arena.size() - at);
        buffers_.push_back({.iov_base = arena.data() + at, .iov_len = n});
      }
    }
    if (buffers_.empty()) return;
    const int result =
        io_uring_register_buffers(&ring_, buffers_.data(), static_cast<unsigned>(buffers_.size()));
    if (result == 0) {
      buffers_description_ = "registered buffers";
      return;
    }
    buffers_.clear();
    buffers_description_ =
        fmt::format("buffers not registered ({}; see ulimit -l)", strerrorname_np(-result));
  }

  int BufferIndex(const std::byte* at, size_t size) const {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const auto* base = static_cast<const std::byte*>(buffers_[i].iov_base);
      if (at >= base && at + size <= base + buffers_[i].iov_len) return static_cast<int>(i);
    }
    return -1;
  }

  // Queues the rest of a slot's operation for the kernel.
  void Prepare(uint32_t slot) { prepared_.push_back(slot); }

  void FillSqe(io_uring_sqe* sqe, uint32_t slot) {
    const IoOp* op = slots_[slot].op;
    std::byte* at = op->memory.data() + op->transferred.size();
    // The kernel moves less than 2 GiB at a time; what is left goes on like any short transfer.
    const auto left = static_cast<unsigned>(
        std::min(kTransferMax.size(), op->memory.size() - op->transferred.size()));
    const auto offset = static_cast<uint64_t>(op->offset.value() + op->transferred.value());
    const int fd =
        fixed_files_ ? static_cast<int>(op->file.value()) : files_[op->file.value()].fd();
    const int buffer = BufferIndex(at, left);
    const bool read = op->kind == IoKind::kRead;
    if (buffer >= 0) {
      read ? io_uring_prep_read_fixed(sqe, fd, at, left, offset, buffer)
           : io_uring_prep_write_fixed(sqe, fd, at, left, offset, buffer);
    } else {
      read ? io_uring_prep_read(sqe, fd, at, left, offset)
           : io_uring_prep_write(sqe, fd, at, left, offset);
    }
    if (fixed_files_) sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, (uint64_t{slots_[slot].generation} << 32) | slot);
  }

  // Hands what is prepared to the kernel, submit_batch_max at a time. What the kernel won't take
  // now stays queued.
  void Flush() {
    while (!prepared_.empty() || io_uring_sq_ready(&ring_) > 0) {
      size_t filled = 0;
      while (filled < prepared_.size() && io_uring_sq_ready(&ring_) < limits_.submit_batch_max) {
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
        if (sqe == nullptr) break;
        FillSqe(sqe, prepared_[filled++]);
      }
      prepared_.erase(prepared_.begin(), prepared_.begin() + static_cast<ptrdiff_t>(filled));
      if (CheckEntered(io_uring_submit(&ring_)) <= 0) return;  // busy: Poll comes here again
    }
  }

  // What io_uring_enter may return without a bug: progress, or a reason to come again.
  static int CheckEntered(int result) {
    SLUICE_CHECK_MSG(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY ||
                         result == -ETIME || result == -ENOMEM,
                     strerrorname_np(-result));
    return result;
  }

  // Consumes every completion there is, then judges it.
  void Reap() {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
      const uint64_t tag = io_uring_cqe_get_data64(cqe);
      const int32_t result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (tag == kWakeTag) {
        uint64_t count = 0;
        (void)!read(wake_fd_, &count, sizeof(count));
        wake_armed_ = false;
        woken_ = true;
        continue;
      }
      const auto slot = static_cast<uint32_t>(tag);
      SLUICE_CHECK_MSG(slot < slots_.size() && slots_[slot].generation == tag >> 32 &&
                           slots_[slot].op != nullptr,
                       "io_uring completed an operation that is not in flight");
      if (GoesOn(slots_[slot].op, result, files_, &slots_[slot].retries)) {
        Prepare(slot);
      } else {
        Finish(slot);
      }
    }
  }

  void Finish(uint32_t slot) {
    Slot& s = slots_[slot];
    s.op->completed = clock_->Now();
    finished_.push_back(s.op);
    s.op = nullptr;
    ++s.generation;
    free_.push_back(slot);
  }

  // Returns when something was completed, at the deadline, or for no reason.
  void Wait(Deadline deadline) {
    if (!wake_armed_) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe != nullptr) {
        io_uring_prep_poll_add(sqe, wake_fd_, POLLIN);
        io_uring_sqe_set_data64(sqe, kWakeTag);
        wake_armed_ = true;
      }
    }
    io_uring_cqe* cqe = nullptr;
    if (deadline == kForever) {
      CheckEntered(io_uring_submit_and_wait(&ring_, 1));
      return;
    }
    const Nanos left = std::max(Nanos(0), deadline - clock_->Now());
    __kernel_timespec timeout{.tv_sec = left.count() / 1'000'000'000,
                              .tv_nsec = left.count() % 1'000'000'000};
    CheckEntered(io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr));
  }

  const std::span<const DirectFile> files_;
  const Limits limits_;
  Clock* const clock_;
  io_uring ring_{};
  bool open_ = false;
  int wake_fd_ = -1;
  bool wake_armed_ = false;
  bool woken_ = false;
  bool fixed_files_ = false;
  std::vector<iovec> buffers_;
  std::string files_description_ = "no files";
  std::string buffers_description_ = "no buffers registered";
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> prepared_;  // slots for the kernel, in order
  std::vector<IoOp*> finished_;     // for Poll to hand out, in order
};

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(std::span<const DirectFile> files,
                                                          std::span<const MemoryView> arenas,
                                                          const IoEngine::Limits& limits,
                                                          Clock* clock) {
  auto engine = std::make_unique<UringEngine>(files, limits, clock);
  SLUICE_RETURN_IF_ERROR(engine->Init(arenas));
  return engine;
}

}  // namespace sluice
