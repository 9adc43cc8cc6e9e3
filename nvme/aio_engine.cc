#include "nvme/aio_engine.h"

#include <libaio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/kernel_queue_engine.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

// The kernel counts completions on the eventfd that Wake counts on, which is what Wait waits for.
class AioEngine final : public KernelQueueEngine {
 public:
  AioEngine(std::span<const DirectFile> files, const Limits& limits, Clock* clock, std::string why)
      : KernelQueueEngine(files, limits, clock),
        why_(std::move(why)),
        blocks_(limits.in_flight_max),
        events_(limits.in_flight_max) {
    batch_.reserve(limits.in_flight_max);
  }
  ~AioEngine() override { (void)Close(); }

  absl::Status Init() {
    const int result = io_setup(static_cast<int>(limits().in_flight_max), &context_);
    if (result < 0) {
      const char* hint = result == -EAGAIN   ? " (raise sysctl fs.aio-max-nr)"
                         : result == -ENOSYS ? " (this kernel was built without it)"
                                             : "";
      return ErrnoStatus(-result, fmt::format("setting up libaio{}", hint));
    }
    SLUICE_RETURN_IF_ERROR(Open());
    WaitForFds(-1, TimePoint(0));
    const absl::Status works = TryOut();
    return works.ok() ? works : Annotate(works, "libaio can be set up, but not used");
  }

  std::string description() const override {
    const bool plain =
        std::ranges::any_of(files(), [](const DirectFile& f) { return !f.direct(); });
    return fmt::format("libaio: {} in flight, {} per submission{}; {}{}", limits().in_flight_max,
                       limits().submit_batch_max,
                       plain ? ", plain files are transferred at submission" : "", why_, waiting());
  }

 private:
  iocb* Fill(uint32_t slot) {
    const Rest rest = RestOf(op(slot));
    const int fd = files()[op(slot).file.value()].fd();
    iocb* block = &blocks_[slot];
    op(slot).kind == IoKind::kRead
        ? io_prep_pread(block, fd, rest.memory.data(), rest.memory.size(), rest.offset.value())
        : io_prep_pwrite(block, fd, rest.memory.data(), rest.memory.size(), rest.offset.value());
    io_set_eventfd(block, wake_fd());
    return block;
  }

  // What the kernel won't take now stays only as long as something is in flight whose end makes
  // Poll come here again.
  void Flush() override {
    while (!broken() && !prepared().empty()) {
      batch_.clear();
      for (const uint32_t slot : prepared()) {
        if (batch_.size() == limits().submit_batch_max) break;
        batch_.push_back(Fill(slot));
      }
      const int result = io_submit(context_, static_cast<long>(batch_.size()), batch_.data());
      if (result > 0) {
        in_kernel_ += static_cast<size_t>(result);
        DropPrepared(static_cast<size_t>(result));
        continue;
      }
      const bool busy = result == 0 || result == -EAGAIN || result == -EINTR;
      if (busy && in_kernel_ > 0) return;
      // It is about the first of them, and nothing but trying again can change it.
      if (!Advance(prepared().front(), result < 0 ? result : -EAGAIN)) DropPrepared(1);
    }
  }

  void Reap() override {
    while (in_kernel_ > 0 && !paused()) {
      timespec no_wait{};
      const int n =
          io_getevents(context_, 0, static_cast<long>(events_.size()), events_.data(), &no_wait);
      if (n < 0) return Refused("asking libaio for completions", -n);
      if (n == 0) return;
      in_kernel_ -= static_cast<size_t>(n);
      for (const io_event& event : std::span(events_).first(static_cast<size_t>(n))) {
        Complete(static_cast<uint32_t>(event.obj - blocks_.data()),
                 static_cast<int64_t>(event.res));
      }
    }
  }

  void Wait(Deadline deadline) override { WaitForFds(-1, deadline); }

  // The kernel gives a context back when nothing is under way in it any more, so from then on
  // nobody writes to the memory of what ends here. If it refuses that too, memory is the kernel's
  // until a completion says otherwise.
  void Abandon() override {
    if (io_destroy(context_) != 0) return KeptInKernel();
    context_ = nullptr;
    in_kernel_ = 0;
    for (uint32_t slot = 0; slot < limits().in_flight_max; ++slot)
      if (InUse(slot) && std::ranges::find(prepared(), slot) == prepared().end()) Fail(slot);
  }

  void Release() override {
    if (context_ != nullptr) (void)io_destroy(std::exchange(context_, nullptr));
  }

  const std::string why_;
  io_context_t context_ = nullptr;
  std::vector<iocb> blocks_;  // by slot
  std::vector<iocb*> batch_;  // those of one submission
  size_t in_kernel_ = 0;      // submitted, completion not consumed
  std::vector<io_event> events_;
};

// Engines of which the kernel keeps something: it may still write to their memory. Here leak
// checkers find them.
void KeepAbandoned(IoEngine* engine) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<IoEngine*>;
  const std::lock_guard lock(mutex);
  kept->push_back(engine);
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeAioEngine(std::span<const DirectFile> files,
                                                        const IoEngine::Limits& limits,
                                                        Clock* clock, std::string why) {
  auto engine = std::make_unique<AioEngine>(files, limits, clock, std::move(why));
  const absl::Status status = engine->Init();
  if (status.ok()) return engine;
  if (engine->in_flight() > 0) KeepAbandoned(engine.release());
  return status;
}

}  // namespace sluice
