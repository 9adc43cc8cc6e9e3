#include "core/sim_world.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>

#include "core/config.h"
#include "core/executor.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

void SimWorld::At(TimePoint when, std::function<void()> action) {
  // Not emplace: GCC 12's calls a member of a null node there, says the undefined sanitizer.
  pending_.insert({std::pair(std::max(when, now_), Random()), std::move(action)});
}

bool SimWorld::RunNext(Deadline deadline) {
  if (pending_.empty() || pending_.begin()->first.first > deadline) {
    if (deadline != kForever && deadline > now_) now_ = deadline;
    return false;
  }
  const auto first = pending_.begin();
  now_ = first->first.first;
  const std::function<void()> action = std::move(first->second);
  pending_.erase(first);
  action();
  return true;
}

uint64_t SimWorld::Random() { return NextRandom(&random_state_); }

uint64_t SimWorld::Uniform(uint64_t low, uint64_t high) {
  SLUICE_CHECK(low <= high);
  const uint64_t range = high - low + 1;
  return range == 0 ? Random() : low + Random() % range;
}

Nanos SimWorld::Delay(SimFault fault) {
  if (fault == SimFault::kSilent) return std::chrono::hours(24);
  if (fault != SimFault::kLate) return Nanos(0);
  return Nanos(static_cast<int64_t>(Uniform(1'000'000'000, 8'000'000'000)));
}

void SimWorld::Log(std::string_view line) {
  if (!muted_) log_ += fmt::format("{} {}\n", now_.count(), line);
}

namespace {

// Fences in virtual time. No point is used twice.
class SimFencePool final : public FencePool {
 public:
  bool Complete(uint32_t point) override { return points_[point].complete; }
  void Return(uint32_t) override {}

  uint32_t Make() {
    points_.emplace_back();
    return static_cast<uint32_t>(points_.size() - 1);
  }
  // Calls `then` once all of `points` are complete.
  void WhenComplete(std::vector<uint32_t> points, std::function<void()> then) {
    while (!points.empty() && Complete(points.back())) points.pop_back();
    if (points.empty()) return then();
    std::vector<std::function<void()>>& waiting = points_[points.back()].waiting;
    waiting.push_back(
        [this, points = std::move(points), then = std::move(then)] { WhenComplete(points, then); });
  }
  void Finish(uint32_t point) {
    points_[point].complete = true;
    for (const auto& then : std::exchange(points_[point].waiting, {})) then();
  }

 private:
  struct Point {
    bool complete = false;
    std::vector<std::function<void()>> waiting;
  };
  std::deque<Point> points_;
};

}  // namespace

void SimQueue::Push(Begin begin) {
  waiting_.push_back(std::move(begin));
  if (!busy_) Next();
}

void SimQueue::Next() {
  busy_ = !waiting_.empty();
  if (!busy_) return;
  const Begin begin = std::move(waiting_.front());
  waiting_.pop_front();
  begin(this);
}

class SimDevice final : public Device {
 public:
  SimDevice(const SimDeviceOptions& options, SimWorld* world, MemoryResource* resource)
      : options_(options),
        world_(world),
        resource_(resource),
        fences_(std::make_shared<SimFencePool>()) {}
  ~SimDevice() override {
    const auto busy = [](const Stream& stream) { return stream.queue->busy(); };
    while (std::any_of(streams_.begin(), streams_.end(), busy) && world_->RunNext(kForever)) {
    }
  }

  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override {
    if (size > options_.hbm_limit) {
      return absl::ResourceExhaustedError(
          fmt::format("{} of HBM were asked for, but the simulated device has {}",
                      FormatBytesUp(size), FormatBytesDown(options_.hbm_limit)));
    }
    return Arena::Create(resource_, size);
  }

  void Enqueue(DeviceOp* op) override {
    Stream* const stream = &StreamOf(op->stream);
    ++stream->waiting;
    Push(stream, [this, stream, op] { Run(stream, op); });
  }
  void OrderAfter(StreamKind kind, const Fence& fence) override {
    if (!fence.Complete()) StreamOf(kind).after.push_back(fence.point());
  }
  StreamCounts pending() const override {
    StreamCounts counts{};
    for (size_t s = 0; s < counts.size(); ++s) counts[s] = streams_[s].waiting + streams_[s].begun;
    return counts;
  }
  void Abandon() override {
    for (Stream& stream : streams_) {
      stream.queue->Drop();
      stream.waiting = 0;
    }
  }
  bool host_addressable() const override { return options_.host_addressable; }
  absl::Status RegisterHost(MemoryView) override { return absl::OkStatus(); }
  absl::Status CheckStream(CallerStream caller) override {
    const auto* stream = static_cast<SimCallerStream*>(caller.handle);
    return stream != nullptr && stream->capturing_
               ? absl::FailedPreconditionError("the simulated stream is being captured")
               : absl::OkStatus();
  }

  // Without a stream the caller computes before it calls, as on the host device.
  absl::StatusOr<Fence> RecordFence(CallerStream caller) override {
    SLUICE_RETURN_IF_ERROR(CheckStream(caller));
    auto* stream = static_cast<SimCallerStream*>(caller.handle);
    if (stream == nullptr) return Fence();
    const SimFault fault = world_->faults()->Next(SimSeam::kFence);
    if (fault == SimFault::kRefused)
      return absl::UnavailableError("a fence can't be recorded in the simulated stream");
    const uint32_t point = fences_->Make();
    RunAdded(stream, world_->Delay(fault), [fences = fences_, point, world = world_] {
      world->Log(fmt::format("fence {} is complete", point));
      fences->Finish(point);
    });
    return Fence(fences_, point);
  }

  bool orders_callers() const override { return true; }
  absl::StatusOr<Fence> RecordEnd(StreamKind kind) override {
    if (world_->faults()->Next(SimSeam::kOrder) == SimFault::kRefused)
      return absl::UnavailableError("a fence can't be recorded in a stream of the device");
    const uint32_t point = fences_->Make();
    const Stream& stream = StreamOf(kind);
    stream.queue->Push([this, point, after = stream.after](SimQueue* queue) {
      fences_->WhenComplete(after, [this, point, queue] {
        fences_->Finish(point);
        queue->Next();
      });
    });
    return Fence(fences_, point);
  }
  absl::Status OrderCallerAfter(CallerStream caller, const Fence& fence) override {
    SLUICE_RETURN_IF_ERROR(CheckStream(caller));
    auto* stream = static_cast<SimCallerStream*>(caller.handle);
    if (stream == nullptr)
      return absl::UnimplementedError("the simulated caller computes before it calls");
    if (world_->faults()->Next(SimSeam::kOrder) == SimFault::kRefused)
      return absl::UnavailableError("the simulated stream can't wait for a fence");
    if (fence.Complete()) return absl::OkStatus();
    if (!stream->work_.empty()) RunAdded(stream, Nanos(0), [] {});
    stream->queue_->Push([fences = fences_, point = fence.point()](SimQueue* queue) {
      fences->WhenComplete({point}, [weak = queue->weak_from_this()] {
        if (const auto passed = weak.lock()) passed->Next();
      });
    });
    return absl::OkStatus();
  }

  DlDevice dl_device() const override { return {.device_type = kDlCpu, .device_id = 0}; }
  std::string description() const override { return "simulated"; }

 private:
  struct Stream {
    const std::shared_ptr<SimQueue> queue = std::make_shared<SimQueue>();
    std::vector<uint32_t> after;  // fences that what comes next starts after
    size_t waiting = 0;           // operations
    size_t begun = 0;             // likewise; those that wait for a fence too
  };

  Stream& StreamOf(StreamKind kind) { return streams_[static_cast<size_t>(kind)]; }

  // `run` is called in its turn, once what the stream was to wait for is complete.
  void Push(Stream* stream, std::function<void()> run) {
    stream->queue->Push(
        [this, stream, run = std::move(run), after = std::exchange(stream->after, {})](SimQueue*) {
          --stream->waiting;
          ++stream->begun;
          fences_->WhenComplete(after, run);
        });
  }

  // What was added to the caller's stream runs after all before, and then `then`.
  void RunAdded(SimCallerStream* stream, Nanos longer, std::function<void()> then) {
    const Nanos takes = Nanos(static_cast<int64_t>(world_->Uniform(100, 400'000))) + longer +
                        std::exchange(stream->delay_, Nanos(0));
    auto work =
        std::make_shared<std::vector<std::function<void()>>>(std::exchange(stream->work_, {}));
    stream->queue_->Push(
        [world = world_, takes, work = std::move(work), then = std::move(then)](SimQueue* begun) {
          world->At(world->Now() + takes, [work, then, queue = begun->shared_from_this()] {
            for (const auto& piece : *work) piece();
            then();
            queue->Next();
          });
        });
  }

  void Run(Stream* stream, DeviceOp* op) {
    op->started = world_->Now();
    Nanos takes = op->duration;
    if (!op->from.empty()) {
      const Nanos link(static_cast<int64_t>(static_cast<double>(op->from.size()) /
                                            options_.link_bytes_per_second * 1e9));
      if (op->stream == StreamKind::kHostToDevice || op->stream == StreamKind::kFetch) {
        op->started = std::max(op->started, link_free_);
        link_free_ = op->started + link;
      }
      takes += link;
    }
    takes += Nanos(static_cast<int64_t>(world_->Uniform(500, 20'000)));
    const SimFault fault = world_->faults()->Next(SimSeam::kCopy);
    takes += world_->Delay(fault);
    world_->At(op->started + takes, [this, stream, op, fault, number = ++ops_] {
      const bool fails = fault == SimFault::kError;
      const size_t size = fails ? op->from.size() / 2 : op->from.size();
      if (op->work != nullptr && !fails) {
        const ScopedFlushDenormals flush;
        op->work->Launch(nullptr);
      }
      if (size > 0) std::memcpy(op->to, op->from.data(), size);
      op->finished = world_->Now();
      op->status = fails ? absl::UnavailableError(fmt::format("device op {} failed", number))
                         : absl::OkStatus();
      world_->Log(
          fmt::format("device op {} on stream {} ends", number, static_cast<int>(op->stream)));
      --stream->begun;
      op->inbox->Post(op->event);
      stream->queue->Next();
    });
  }

  const SimDeviceOptions options_;
  SimWorld* const world_;
  MemoryResource* const resource_;
  const std::shared_ptr<SimFencePool> fences_;
  std::array<Stream, kStreamCount> streams_;
  TimePoint link_free_{0};  // to the device
  uint64_t ops_ = 0;
};

std::unique_ptr<Device> MakeSimDevice(const SimDeviceOptions& options, SimWorld* world,
                                      MemoryResource* resource) {
  return std::make_unique<SimDevice>(options, world, resource);
}

}  // namespace sluice
