// offload/run/reduction.h
//
// One unit's gradients while the ranks add them up: exchange -> sum -> [gather] -> parts handed on.
// In the library's mode the exchange adds, and the sum is of one. Internal to GradExchange.
//
// Threads: the control thread; sums run on workers, or on the device. Lives as long as the
// GradExchange; used again and again.

#ifndef SLUICE_OFFLOAD_RUN_REDUCTION_H_
#define SLUICE_OFFLOAD_RUN_REDUCTION_H_

#include <memory>
#include <vector>

#include "comm/ordered_reduce.h"
#include "offload/run/grad_exchange.h"
#include "optim/on_stream.h"

namespace sluice {

// A piece of this rank's shard, summed on a worker.
class GradExchange::SumTask final : public Task, public Event {
 public:
  explicit SumTask(Reduction* reduction) : reduction_(reduction) {}
  void Run() override;
  void Handle() override;
  TaskCost cost() const override { return {TaskKind::kSum, (last - first) * ranks}; }

  int64_t first = 0;  // elements of the shard
  int64_t last = 0;
  int64_t ranks = 0;

 private:
  Reduction* const reduction_;
};

class GradExchange::Reduction final : public Event {
 public:
  explicit Reduction(GradExchange* owner)
      : owner_(owner),
        send_(owner->communicator_->ranks()),
        receive_(owner->communicator_->ranks()),
        ends_(EndsOfOneEach(owner->communicator_->ranks())),
        zeroing_(this),
        summing_(this) {
    op_.inbox = owner->context_.inbox;
    op_.event = this;
  }

  // `staging`: the unit's gradients as the unit is laid out; `received`: room for what the others
  // have of this rank's shard, in the ordered mode.
  void Take(UnitIndex unit, MemoryView staging, MemoryView received) {
    unit_ = unit;
    staging_ = staging;
    received_ = received;
    status_ = absl::OkStatus();
    gathering_ = false;
    began_ = owner_->context_.clock->Now();
    zeroing_.parts.clear();
  }
  // Of the unit, what no gradient was given of.
  void AddZeros(int64_t begin, int64_t elements) {
    zeroing_.parts.push_back(Of({begin, begin + elements}));
  }
  // Fills these with zeros: at once, or OnZeroed says when.
  bool Zero() {
    if (zeroing_.parts.empty()) return true;
    if (!owner_->in_place_) return zeroing_.Enqueue(), false;
    zeroing_.Launch(nullptr);
    return true;
  }
  void Exchange() {
    owner_->ordered_ ? ExchangeAll() : ReduceScatter();
    op_.send = {.views = send_, .ends = ends_};
    op_.tag = unit_.value();
    owner_->communicator_->Enqueue(&op_);
  }
  void ExchangeAll() {
    const ElementRange mine = shard(rank());
    const size_t bytes = static_cast<size_t>(mine.size() * size());
    addends_ = {.own = Of(mine).data(),
                .others = received_.data(),
                .stride = bytes,
                .rank = rank().value(),
                .ranks = static_cast<uint32_t>(send_.size())};
    size_t at = 0;
    for (uint32_t r = 0; r < send_.size(); ++r) {
      const bool own = Rank(r) == rank();
      send_[r] = own ? MemoryView() : Of(shard(Rank(r)));
      receive_[r] = own ? MemoryView() : received_.subspan(at, bytes);
      at += own ? 0 : bytes;
    }
    op_.kind = CommKind::kAllToAll;
    op_.receive = {.views = receive_, .ends = ends_};
  }
  // To where this rank's own shard is.
  void ReduceScatter() {
    for (uint32_t r = 0; r < send_.size(); ++r) send_[r] = Of(shard(Rank(r)));
    receive_[0] = Of(shard(rank()));
    addends_ = {.own = receive_[0].data()};
    op_.kind = CommKind::kReduceScatter;
    op_.type = type();
    op_.receive = {.views = std::span<const MemoryView>(receive_).first(1), .ends = {}};
  }

  // Adds up this rank's shard, in place: where it is, on workers or on the device.
  void Sum() {
    const int64_t elements = shard(rank()).size();
    if (elements == 0) return owner_->OnSummed(this);
    if (!owner_->in_place_) return summing_.Enqueue();
    constexpr int64_t kElementsPerTask = 64 * kCellElements;
    const auto tasks = static_cast<size_t>((elements + kElementsPerTask - 1) / kElementsPerTask);
    sums_left_ = tasks;
    while (tasks_.size() < tasks) tasks_.push_back(std::make_unique<SumTask>(this));
    for (size_t i = 0; i < tasks; ++i) {
      tasks_[i]->first = static_cast<int64_t>(i) * kElementsPerTask;
      tasks_[i]->last = std::min(elements, tasks_[i]->first + kElementsPerTask);
      tasks_[i]->ranks = addends_.ranks;
      owner_->context_.executor->Submit(tasks_[i].get());
    }
  }
  void SumPiece(int64_t first, int64_t last, void* stream) const {
    const int64_t begin = first * size();
    Addends from = addends_;
    from.own += begin;
    if (from.ranks > 1) from.others += begin;
    OrderedSumOn(stream, from, type(), 1.0f / static_cast<float>(send_.size()),
                 Of(shard(rank())).data() + begin, static_cast<size_t>(last - first));
  }
  void OnePieceSummed() {
    if (--sums_left_ == 0) owner_->OnSummed(this);
  }

  // Brings every rank's sums to all.
  void Gather() {
    gathering_ = true;
    for (uint32_t r = 0; r < receive_.size(); ++r) receive_[r] = Of(shard(Rank(r)));
    send_[0] = receive_[rank().value()];
    op_.kind = CommKind::kAllGather;
    op_.send = {.views = std::span<const ConstMemoryView>(send_).first(1), .ends = {}};
    op_.receive = {.views = receive_, .ends = ends_};
    owner_->communicator_->Enqueue(&op_);
  }

  void Handle() override {
    status_ = op_.status;
    gathering_ ? owner_->HandOnIfFree(this) : owner_->OnExchanged(this);
  }

  GradExchange* owner() const { return owner_; }
  UnitIndex unit() const { return unit_; }
  MemoryView staging() const { return staging_; }
  MemoryView received() const { return received_; }
  const Fence* ready() const { return &ready_; }
  const absl::Status& status() const { return status_; }
  TimePoint began() const { return began_; }
  void set_parts_left(size_t parts) { parts_left_ = parts; }
  // Returns whether it was the last.
  bool OnePartDone(const absl::Status& status) {
    if (status_.ok()) status_ = status;
    return --parts_left_ == 0;
  }

 private:
  // Work on the device.
  struct OnDevice : DeviceWork, Event {
    explicit OnDevice(Reduction* reduction) : reduction(reduction) {}
    void Enqueue() {
      op.stream = StreamKind::kCompute;
      op.work = this;
      op.inbox = reduction->owner_->context_.inbox;
      op.event = this;
      reduction->owner_->context_.device->Enqueue(&op);
    }
    Reduction* const reduction;
    DeviceOp op;
  };
  struct Zeroing final : OnDevice {
    using OnDevice::OnDevice;
    void Launch(void* stream) override {
      for (const MemoryView part : parts) ZeroOn(stream, part.data(), part.size());
    }
    void Handle() override {
      reduction->status_ = op.status;
      reduction->owner_->OnZeroed(reduction);
    }
    std::vector<MemoryView> parts;
  };
  struct Summing final : OnDevice {
    using OnDevice::OnDevice;
    void Launch(void* stream) override {
      reduction->SumPiece(0, reduction->shard(reduction->rank()).size(), stream);
    }
    void Handle() override {
      reduction->status_ = op.status;
      reduction->owner_->OnSummed(reduction);
    }
  };

  Rank rank() const { return owner_->communicator_->rank(); }
  const UnitLayout& layout() const { return owner_->context_.layout->unit(unit_); }
  FloatType type() const { return layout().types.grad; }
  int64_t size() const { return SizeOf(type()); }
  ElementRange shard(Rank rank) const { return layout().updated.shard(rank); }
  MemoryView Of(ElementRange range) const {
    return staging_.subspan(static_cast<size_t>(range.begin * size()),
                            static_cast<size_t>(range.size() * size()));
  }

  GradExchange* const owner_;
  UnitIndex unit_;
  MemoryView staging_;
  MemoryView received_;
  std::vector<ConstMemoryView> send_;  // by rank, as the next two
  std::vector<MemoryView> receive_;
  const std::vector<uint32_t> ends_;
  Addends addends_;
  CommOp op_;
  bool gathering_ = false;
  absl::Status status_;
  TimePoint began_{0};
  std::vector<std::unique_ptr<SumTask>> tasks_;
  size_t sums_left_ = 0;
  size_t parts_left_ = 0;
  Zeroing zeroing_;
  Summing summing_;
  const Fence ready_;  // complete
};

inline void GradExchange::SumTask::Run() {
  reduction_->SumPiece(first, last, nullptr);
  reduction_->owner()->context_.inbox->Post(this);
}
inline void GradExchange::SumTask::Handle() { reduction_->OnePieceSummed(); }

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_REDUCTION_H_
