#include "nvme/uring_engine.h"

#include <liburing.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/kernel_queue_engine.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

constexpr uint64_t kWakeTag = ~uint64_t{0};
constexpr Bytes kRegisteredPiece = GiB(1);  // a larger single buffer is refused with EFAULT
constexpr Bytes kTransferMax = GiB(1);

class UringEngine final : public KernelQueueEngine {
 public:
  UringEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock)
      : KernelQueueEngine(files, limits, clock), generations_(limits.in_flight_max) {
    in_ring_.reserve(limits.in_flight_max + 1);
  }
  ~UringEngine() override { (void)Close(); }

  absl::Status Init(std::span<const MemoryView> arenas) {
    io_uring_params params{};
    // The flag lets Poll(kNoWait) see that the kernel has completions to post, and go and get them.
    params.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    int result = io_uring_queue_init_params(limits().in_flight_max + 8, &ring_, &params);
    if (result == -EINVAL) {
      params = {};
      result = io_uring_queue_init_params(limits().in_flight_max + 8, &ring_, &params);
    }
    if (result < 0) {
      const char* hint = result == -EPERM
                             ? " (forbidden here: see sysctl kernel.io_uring_disabled, or the "
                               "container's seccomp profile)"
                         : result == -ENOMEM ? " (raise the limit on locked memory: ulimit -l)"
                                             : "";
      return ErrnoStatus(-result, fmt::format("setting up io_uring{}", hint));
    }
    SLUICE_RETURN_IF_ERROR(Open());
    if ((ring_.features & IORING_FEAT_NODROP) == 0 || (ring_.features & IORING_FEAT_EXT_ARG) == 0) {
      return absl::UnavailableError(
          "this kernel's io_uring is too old (needs NODROP and EXT_ARG: Linux 5.11)");
    }
    RegisterFiles();
    RegisterBuffers(arenas);
    const absl::Status works = Probe();
    return works.ok() ? works : Annotate(works, "io_uring can be set up, but not used");
  }

  std::string description() const override {
    return fmt::format("io_uring: {}, {}, {} in flight, {} per submission, no SQPOLL{}",
                       files_description_, buffers_description_, limits().in_flight_max,
                       limits().submit_batch_max, waiting());
  }

 private:
  // One operation of each kind that is needed. It leaves none behind: the ring's owner will be
  // another thread, and the kernel ends an operation in the thread that began it.
  absl::Status Probe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    io_uring_prep_nop(sqe);
    PutInRing(sqe, kWakeTag);
    wake_armed_ = true;
    while (wake_armed_ && !broken()) {
      if (!paused()) Entered(io_uring_submit_and_wait(&ring_, 1));
      Reap();
    }
    wake_armed_ = true;
    absl::Status works = TryOut();
    wake_armed_ = false;
    return works;
  }

  void RegisterFiles() {
    std::vector<int> fds;
    for (const DirectFile& file : files()) fds.push_back(file.fd());
    if (fds.empty()) return;
    const int result =
        io_uring_register_files(&ring_, fds.data(), static_cast<unsigned>(fds.size()));
    fixed_files_ = result == 0;
    files_description_ = fixed_files_
                             ? "registered files"
                             : fmt::format("files not registered ({})", ErrnoName(-result));
  }

  void RegisterBuffers(std::span<const MemoryView> arenas) {
    if (files().empty()) return;
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
        fmt::format("buffers not registered ({}; see ulimit -l)", ErrnoName(-result));
  }

  int BufferIndex(const std::byte* at, size_t size) const {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const auto* base = static_cast<const std::byte*>(buffers_[i].iov_base);
      if (at >= base && at + size <= base + buffers_[i].iov_len) return static_cast<int>(i);
    }
    return -1;
  }

  void FillSqe(io_uring_sqe* sqe, uint32_t slot) {
    const Rest rest = RestOf(op(slot));
    std::byte* at = rest.memory.data();
    // The kernel moves less than 2 GiB at a time; what is left goes on like any short transfer.
    const auto n = static_cast<unsigned>(std::min(kTransferMax.size(), rest.memory.size()));
    const auto offset = static_cast<uint64_t>(rest.offset.value());
    const uint32_t file = op(slot).file.value();
    const int fd = fixed_files_ ? static_cast<int>(file) : files()[file].fd();
    const int buffer = BufferIndex(at, n);
    const bool read = op(slot).kind == IoKind::kRead;
    if (buffer >= 0) {
      read ? io_uring_prep_read_fixed(sqe, fd, at, n, offset, buffer)
           : io_uring_prep_write_fixed(sqe, fd, at, n, offset, buffer);
    } else {
      read ? io_uring_prep_read(sqe, fd, at, n, offset)
           : io_uring_prep_write(sqe, fd, at, n, offset);
    }
    if (fixed_files_) sqe->flags |= IOSQE_FIXED_FILE;
    PutInRing(sqe, (uint64_t{generations_[slot]} << 32) | slot);
  }

  void PutInRing(io_uring_sqe* sqe, uint64_t tag) {
    io_uring_sqe_set_data64(sqe, tag);
    in_ring_.push_back(tag);
  }

  // What the kernel won't take now stays here, or in the ring.
  void Flush() override {
    while (!broken() && !paused() && (!prepared().empty() || !in_ring_.empty())) {
      size_t filled = 0;
      while (filled < prepared().size() && io_uring_sq_ready(&ring_) < limits().submit_batch_max) {
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
        if (sqe == nullptr) break;
        FillSqe(sqe, prepared()[filled++]);
      }
      DropPrepared(filled);
      if (Entered(io_uring_submit(&ring_)) <= 0) return;  // busy: Poll comes here again
    }
  }

  // Takes in what io_uring_enter returned, and what the kernel has taken from the ring.
  int Entered(int result) {
    const auto left = static_cast<ptrdiff_t>(io_uring_sq_ready(&ring_));
    SLUICE_CHECK(left <= std::ssize(in_ring_));
    if (left < std::ssize(in_ring_)) Progressed();
    in_ring_.erase(in_ring_.begin(), in_ring_.end() - left);
    // A wait that ends early is none of the kernel's refusals, unless it left things in the ring.
    const bool waited = in_ring_.empty() && (result == -ETIME || result == -EINTR);
    if (result < 0 && !waited) Refused("entering io_uring", -result);
    return result;
  }

  // The ring is not entered again, so what is left in it never gets to the kernel.
  void Abandon() override {
    for (const uint64_t tag : in_ring_)
      if (tag != kWakeTag) Fail(static_cast<uint32_t>(tag));
    in_ring_.clear();
  }

  void Reap() override {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
      const uint64_t tag = io_uring_cqe_get_data64(cqe);
      const int32_t result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (tag == kWakeTag) {
        ClearWakeFd();
        wake_armed_ = false;
        wake_refused_ = wake_refused_ || result < 0;
        continue;
      }
      const auto slot = static_cast<uint32_t>(tag);
      SLUICE_CHECK_MSG(InUse(slot) && generations_[slot] == tag >> 32,
                       "io_uring completed an operation that is not in flight");
      ++generations_[slot];
      Complete(slot, result);
    }
  }

  // Where the ring can't be entered, it can still be looked at: poll says when it has something.
  void Wait(Deadline deadline) override {
    if (broken() || paused() || wake_refused_) return WaitForFds(ring_.ring_fd, deadline);
    if (!wake_armed_) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe != nullptr) {
        io_uring_prep_poll_add(sqe, wake_fd(), POLLIN);
        PutInRing(sqe, kWakeTag);
        wake_armed_ = true;
      }
    }
    io_uring_cqe* cqe = nullptr;
    if (deadline == kForever) {
      Entered(io_uring_submit_and_wait(&ring_, 1));
      return;
    }
    const Nanos left = TimeLeft(deadline);
    __kernel_timespec timeout{.tv_sec = left.count() / 1'000'000'000,
                              .tv_nsec = left.count() % 1'000'000'000};
    Entered(io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr));
  }

  void Release() override { io_uring_queue_exit(&ring_); }

  io_uring ring_{};
  std::vector<uint32_t> generations_;  // by slot: of the transfer that is in the kernel
  std::vector<uint64_t> in_ring_;      // tags of what the kernel has still to take, in order
  bool wake_armed_ = false;            // the ring watches wake_fd
  bool wake_refused_ = false;          // it can't
  bool fixed_files_ = false;
  std::vector<iovec> buffers_;
  std::string files_description_ = "no files";
  std::string buffers_description_ = "no buffers registered";
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
