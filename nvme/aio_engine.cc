#include "nvme/aio_engine.h"

#include <libaio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

// The kernel counts completions and wakes on one eventfd, which is what Poll waits for. Whether it
// was a wake is told apart by a flag, set before the count.
class AioEngine final : public IoEngine {
 public:
  AioEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock, std::string why)
      : files_(files),
        limits_(limits),
        clock_(clock),
        why_(std::move(why)),
        slots_(limits.in_flight_max),
        events_(limits.in_flight_max) {
    for (Slot& slot : slots_) free_.push_back(&slot);
    finished_.reserve(limits.in_flight_max);
    prepared_.reserve(limits.in_flight_max);
    batch_.reserve(limits.in_flight_max);
  }
  ~AioEngine() override {
    (void)Close();
    if (event_fd_ >= 0) close(event_fd_);  // not before: Wake may be called until now
  }

  absl::Status Init() {
    const int result = io_setup(static_cast<int>(limits_.in_flight_max), &context_);
    if (result < 0) {
      const char* hint = result == -EAGAIN   ? " (raise sysctl fs.aio-max-nr)"
                         : result == -ENOSYS ? " (this kernel was built without it)"
                                             : "";
      return ErrnoStatus(-result, fmt::format("setting up libaio{}", hint));
    }
    open_ = true;
    event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0) return ErrnoStatus(errno, "creating an eventfd");
    return absl::OkStatus();
  }

  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    for (; taken < ops.size() && in_flight() < limits_.in_flight_max; ++taken) {
      IoOp* op = ops[taken];
      op->transferred = Bytes(0);
      op->submitted = clock_->Now();
      op->status = CheckOp(*op, files_);
      Slot* slot = free_.back();
      free_.pop_back();
      slot->op = op;
      slot->retries = 0;
      if (op->status.ok()) {
        prepared_.push_back(slot);
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
      if (woken_.exchange(false)) break;
      Wait(deadline);
    }
    const size_t n = std::min(done.size(), finished_.size());
    std::copy_n(finished_.begin(), n, done.begin());
    finished_.erase(finished_.begin(), finished_.begin() + static_cast<ptrdiff_t>(n));
    return n;
  }

  void Wake() override {
    woken_.store(true);
    const uint64_t one = 1;
    // Fails only if the counter is full, and then Poll returns from its wait anyway.
    (void)!write(event_fd_, &one, sizeof(one));
  }

  size_t in_flight() const override { return slots_.size() - free_.size() + finished_.size(); }

  std::string description() const override {
    const bool plain =
        std::any_of(files_.begin(), files_.end(), [](const DirectFile& f) { return !f.direct(); });
    return fmt::format("libaio: {} in flight, {} per submission{}; {}", limits_.in_flight_max,
                       limits_.submit_batch_max,
                       plain ? ", plain files are transferred at submission" : "", why_);
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
    io_destroy(context_);
    open_ = false;
    return first;
  }

 private:
  struct Slot {
    iocb block{};
    IoOp* op = nullptr;
    int retries = 0;
  };

  void Fill(Slot* slot) const {
    const IoOp* op = slot->op;
    std::byte* at = op->memory.data() + op->transferred.size();
    const size_t left = op->memory.size() - op->transferred.size();
    const int64_t offset = op->offset.value() + op->transferred.value();
    const int fd = files_[op->file.value()].fd();
    op->kind == IoKind::kRead ? io_prep_pread(&slot->block, fd, at, left, offset)
                              : io_prep_pwrite(&slot->block, fd, at, left, offset);
    io_set_eventfd(&slot->block, event_fd_);
    slot->block.data = slot;
  }

  // Hands what is prepared to the kernel, in order, submit_batch_max at a time. What the kernel
  // won't take now stays, as long as something is in flight whose end makes Poll come here again.
  void Flush() {
    while (!prepared_.empty()) {
      batch_.clear();
      for (Slot* slot : prepared_) {
        if (batch_.size() == limits_.submit_batch_max) break;
        Fill(slot);
        batch_.push_back(&slot->block);
      }
      const int result = io_submit(context_, static_cast<long>(batch_.size()), batch_.data());
      if (result > 0) {
        in_kernel_ += static_cast<size_t>(result);
        prepared_.erase(prepared_.begin(), prepared_.begin() + result);
        continue;
      }
      const bool busy = result == 0 || result == -EAGAIN || result == -EINTR;
      if (busy && in_kernel_ > 0) return;
      // It is about the first of them, and nothing but trying again can change it.
      Slot* first = prepared_.front();
      if (GoesOn(first->op, result < 0 ? result : -EAGAIN, files_, &first->retries)) continue;
      prepared_.erase(prepared_.begin());
      Finish(first);
    }
  }

  // Consumes every completion there is, then judges each.
  void Reap() {
    while (in_kernel_ > 0) {
      timespec no_wait{};
      const int n =
          io_getevents(context_, 0, static_cast<long>(events_.size()), events_.data(), &no_wait);
      if (n == -EINTR) continue;
      SLUICE_CHECK_MSG(n >= 0, strerrorname_np(-n));
      if (n == 0) return;
      in_kernel_ -= static_cast<size_t>(n);
      for (int i = 0; i < n; ++i) {
        const io_event& event = events_[static_cast<size_t>(i)];
        auto* slot = static_cast<Slot*>(event.data);
        SLUICE_CHECK_MSG(slot->op != nullptr, "libaio completed what is not in flight");
        const auto result = static_cast<int64_t>(event.res);
        if (GoesOn(slot->op, result, files_, &slot->retries)) {
          prepared_.push_back(slot);
        } else {
          Finish(slot);
        }
      }
    }
  }

  void Finish(Slot* slot) {
    slot->op->completed = clock_->Now();
    finished_.push_back(std::exchange(slot->op, nullptr));
    free_.push_back(slot);
  }

  // Returns when something was completed, when woken, at the deadline, or for no reason.
  void Wait(Deadline deadline) {
    pollfd events{.fd = event_fd_, .events = POLLIN, .revents = 0};
    const Nanos left =
        deadline == kForever ? Nanos(0) : std::max(Nanos(0), deadline - clock_->Now());
    const timespec timeout{.tv_sec = left.count() / 1'000'000'000,
                           .tv_nsec = left.count() % 1'000'000'000};
    const int result = ppoll(&events, 1, deadline == kForever ? nullptr : &timeout, nullptr);
    SLUICE_CHECK_MSG(result >= 0 || errno == EINTR || errno == ENOMEM, strerrorname_np(errno));
    uint64_t count = 0;
    if (result > 0) (void)!read(event_fd_, &count, sizeof(count));
  }

  const std::span<const DirectFile> files_;
  const Limits limits_;
  Clock* const clock_;
  const std::string why_;
  io_context_t context_ = nullptr;
  bool open_ = false;
  int event_fd_ = -1;
  std::atomic<bool> woken_{false};
  std::vector<Slot> slots_;
  std::vector<Slot*> free_;
  std::vector<Slot*> prepared_;  // for the kernel, in order
  std::vector<iocb*> batch_;     // those of one submission
  size_t in_kernel_ = 0;         // submitted, completion not consumed
  std::vector<io_event> events_;
  std::vector<IoOp*> finished_;  // for Poll to hand out, in order
};

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeAioEngine(std::span<const DirectFile> files,
                                                        const IoEngine::Limits& limits,
                                                        Clock* clock, std::string why) {
  auto engine = std::make_unique<AioEngine>(files, limits, clock, std::move(why));
  SLUICE_RETURN_IF_ERROR(engine->Init());
  return engine;
}

}  // namespace sluice
