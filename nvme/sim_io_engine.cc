#include "nvme/sim_io_engine.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/finished_ops.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

class SimIoEngine final : public IoEngine {
 public:
  SimIoEngine(const SimIoOptions& options, std::span<const Bytes> file_sizes, const Limits& limits,
              SimWorld* world)
      : options_(options),
        limits_(limits),
        world_(world),
        drive_free_(options.bytes_per_second.size(), TimePoint(0)) {
    for (Bytes size : file_sizes) files_.emplace_back(size.size(), std::byte{0xA5});
  }

  size_t Submit(std::span<IoOp* const> ops) override {
    size_t taken = 0;
    for (; taken < ops.size() && in_flight() < limits_.in_flight_max; ++taken) Start(ops[taken]);
    return taken;
  }

  size_t Poll(std::span<IoOp*> done, Deadline deadline) override {
    while (finished_.empty() && deadline > world_->Now() && !world_->TakeWake()) {
      if (!world_->RunNext(deadline)) break;
    }
    return finished_.HandOut(done);
  }

  void Wake() override {
    if (options_.waker != nullptr) return options_.waker->Wake();
    world_->Wake();
  }
  size_t in_flight() const override { return running_.size() + finished_.size(); }
  std::string description() const override { return "simulated"; }

  absl::Status Close() override {
    while (!running_.empty() && world_->RunNext(kForever)) {
    }
    return finished_.Drop();
  }

 private:
  // Where the bytes of `op` lie in its file; null if they don't.
  std::byte* Place(const IoOp& op) {
    if (op.file.value() >= files_.size() || op.offset.value() < 0) return nullptr;
    std::vector<std::byte>& file = files_[op.file.value()];
    const auto offset = static_cast<size_t>(op.offset.value());
    return offset + op.memory.size() <= file.size() ? file.data() + offset : nullptr;
  }

  bool Aligned(const IoOp& op) const {
    const int64_t alignment = options_.alignment.value();
    return reinterpret_cast<uintptr_t>(op.memory.data()) % static_cast<uint64_t>(alignment) == 0 &&
           op.offset.value() % alignment == 0 &&
           static_cast<int64_t>(op.memory.size()) % alignment == 0;
  }

  bool Overlaps(const IoOp& a, const IoOp& b) const {
    const int64_t a_end = a.offset.value() + static_cast<int64_t>(a.memory.size());
    const int64_t b_end = b.offset.value() + static_cast<int64_t>(b.memory.size());
    return a.file == b.file && a.offset.value() < b_end && b.offset.value() < a_end &&
           (a.kind == IoKind::kWrite || b.kind == IoKind::kWrite);
  }

  void Start(IoOp* op) {
    op->submitted = world_->Now();
    op->transferred = Bytes(0);
    op->status = Check(*op);
    running_.push_back(op);
    const SimFault fault =
        world_->faults()->Next(op->kind == IoKind::kRead ? SimSeam::kRead : SimSeam::kWrite);
    if (fault == SimFault::kRefused && op->status.ok()) {
      op->status = ErrnoStatus(EAGAIN, OpName(*op));
      return End(op, fault);
    }
    const auto bytes = static_cast<double>(op->memory.size());
    const uint32_t file = op->file.value();
    const size_t drive = file < options_.file_drive.size() ? options_.file_drive[file].value() : 0;
    TimePoint& drive_free = drive_free_[drive];
    drive_free = std::max(drive_free, world_->Now()) +
                 Nanos(static_cast<int64_t>(bytes / options_.bytes_per_second[drive] * 1e9));
    const auto jitter = world_->Uniform(static_cast<uint64_t>(options_.latency_min.count()),
                                        static_cast<uint64_t>(options_.latency_max.count()));
    TimePoint end = drive_free + Nanos(static_cast<int64_t>(jitter));
    end += world_->Delay(fault);
    const auto takes = static_cast<uint64_t>((end - world_->Now()).count());
    const TimePoint touch = world_->Now() + Nanos(static_cast<int64_t>(world_->Uniform(0, takes)));
    // The end is queued by the move, which it must not overtake when both come at one time.
    world_->At(touch, [this, op, end, fault] {
      if (op->status.ok()) MoveBytes(op, fault);
      world_->At(end, [this, op, fault] { End(op, fault); });
    });
  }

  absl::Status Check(const IoOp& op) {
    if (Place(op) == nullptr)
      return absl::InternalError(fmt::format("{}: outside the simulated file", OpName(op)));
    if (!Aligned(op)) return ErrnoStatus(EINVAL, OpName(op));
    for (const IoOp* other : running_) {
      if (!Overlaps(op, *other)) continue;
      return absl::InternalError(
          fmt::format("{}: overlaps one in flight, {}", OpName(op), OpName(*other)));
    }
    return absl::OkStatus();
  }

  void MoveBytes(IoOp* op, SimFault fault) {
    op->transferred = Bytes(static_cast<int64_t>(op->memory.size()));
    if (fault == SimFault::kLost) return;
    if (fault == SimFault::kShort) op->transferred = op->transferred / 2;
    const bool read = op->kind == IoKind::kRead;
    std::byte* const to = read ? op->memory.data() : Place(*op);
    std::memcpy(to, read ? Place(*op) : op->memory.data(), op->transferred.size());
    if (fault == SimFault::kCorrupt) {
      const uint64_t bit = world_->Uniform(0, 8 * op->memory.size() - 1);
      to[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    }
  }

  void End(IoOp* op, SimFault fault) {
    op->completed = world_->Now();
    if (op->status.ok() && fault == SimFault::kError) {
      op->status = ErrnoStatus(EIO, OpName(*op));
      op->transferred = Bytes(0);
    } else if (op->status.ok() && fault == SimFault::kShort) {
      op->status = absl::DataLossError(fmt::format("{}: nothing more is moved after {} bytes",
                                                   OpName(*op), op->transferred.value()));
    }
    world_->Log(fmt::format("{} of {} at {}:{} ends", op->kind == IoKind::kRead ? "read" : "write",
                            op->memory.size(), op->file.value(), op->offset.value()));
    std::erase(running_, op);
    finished_.Push(op);
    if (options_.waker != nullptr) options_.waker->Wake();
  }

  const SimIoOptions options_;
  const Limits limits_;
  SimWorld* const world_;
  std::vector<std::vector<std::byte>> files_;
  std::vector<IoOp*> running_;
  FinishedOps finished_;
  std::vector<TimePoint> drive_free_;  // by drive: when it has done what was submitted
};

}  // namespace

std::unique_ptr<IoEngine> MakeSimIoEngine(const SimIoOptions& options,
                                          std::span<const Bytes> file_sizes,
                                          const IoEngine::Limits& limits, SimWorld* world) {
  return std::make_unique<SimIoEngine>(options, file_sizes, limits, world);
}

}  // namespace sluice
