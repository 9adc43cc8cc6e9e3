// offload/run/gradient_ops.h
//
// A gradient on its way in, and cells of one that are taken and summed. Internal to Gradients.
//
// Threads: Run on a worker and Launch on the device's stream, the rest on the control thread. Lives
// as long as the Gradients; used again and again.

#ifndef SLUICE_OFFLOAD_RUN_GRADIENT_OPS_H_
#define SLUICE_OFFLOAD_RUN_GRADIENT_OPS_H_

#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/gradients.h"
#include "optim/convert.h"
#include "optim/norm.h"
#include "optim/on_stream.h"

namespace sluice {

// One gradient on its way in, part by part. The first of a window is copied as it is; later ones
// are added. Where the host can read what was pushed and write where it goes, workers do so, cells
// at a time. Else the device copies, and what is added passes through a buffer piece by piece, from
// which a worker or the device adds it. What lives on NVMe goes its own way meanwhile.
class Gradients::PushOp final : public Event,
                                public Task,
                                public DeviceWork,
                                public BufferPool::Waiter {
 public:
  explicit PushOp(Gradients* owner) : added(this), spilled(this), owner_(owner) {}

  void Handle() override { owner_->OnCopied(this); }  // of the device's copy
  void OnBuffer(MemoryView view) override {
    buffer = view;
    owner_->CopyPiece(this);
  }
  void Run() override {
    Launch(nullptr);
    owner_->context_.inbox->Post(&added);
  }
  void Launch(void* stream) override {
    const FloatType type = owner_->TypeOf(tensor);
    const size_t size = static_cast<size_t>(SizeOf(type));
    AccumulateOn(stream, part().home + offset, buffer.data(), type, piece / size);
  }
  TaskCost cost() const override { return {TaskKind::kCopy, static_cast<int64_t>(piece)}; }

  struct Added final : Event {
    explicit Added(PushOp* push) : push(push) {}
    void Handle() override { push->owner_->OnAdded(push); }
    PushOp* const push;
  };

  struct Spilled final : GradSpill::Push {
    explicit Spilled(PushOp* push) : push(push) {}
    void OnSpilled(const absl::Status& status) override { push->owner_->EndWay(push, status); }
    PushOp* const push;
  };

  const Part& part() const { return owner_->tensors_[tensor.value()].parts[next_part]; }

  TensorIndex tensor;
  ConstMemoryView data;
  int64_t first = 0;  // element, where it begins
  const Fence* fence = nullptr;
  Done done;
  bool adding = false;
  int ways_left = 0;      // parts, and what lives on NVMe
  size_t tasks_left = 0;  // of the part
  size_t parts_summed = 0;
  absl::Status status;
  size_t next_part = 0;
  size_t offset = 0;  // of the piece, in the part, in bytes
  size_t piece = 0;
  MemoryView buffer;
  DeviceOp copy;
  DeviceOp addition;  // if the device adds
  Added added;
  Spilled spilled;

 private:
  Gradients* const owner_;
};

// Up to kCellsPerTask cells of a part of a tensor: taken from a push whose data the host can reach,
// and summed, cell by cell, so that a cell is in the core's cache when its squares are added up.
class Gradients::CellTask final : public Task, public DeviceWork, public Event {
 public:
  CellTask(Gradients* owner, TensorIndex tensor, const Part& part, int64_t first, int64_t last)
      : owner_(owner), tensor_(tensor), part_(part), first_(first), last_(last) {}

  // Sums what was taken.
  void Start() {
    const Context& c = owner_->context_;
    push_ = nullptr;
    sums_ = true;
    if (!part_.in_hbm) return c.executor->Submit(this);
    op_.stream = StreamKind::kCompute;
    op_.work = this;
    op_.from = {c.memory->sums_hbm + SumsOffset(), SumsBytes()};
    op_.to = c.memory->sums + SumsOffset();
    op_.inbox = c.inbox;
    op_.event = this;
    c.device->Enqueue(&op_);
  }
  // Takes from `push`, whose part this is of; precondition: not in HBM.
  void StartTaking(PushOp* push, bool sums) {
    push_ = push;
    sums_ = sums;
    owner_->context_.executor->Submit(this);
  }
  void Run() override {
    const Context& c = owner_->context_;
    op_.started = c.clock->Now();
    push_ != nullptr ? Take() : Sum(nullptr, Sums());
    op_.finished = c.clock->Now();
    c.inbox->Post(this);
  }
  void Launch(void* stream) override {
    Sum(stream, reinterpret_cast<double*>(owner_->context_.memory->sums_hbm + SumsOffset()));
  }
  TaskCost cost() const override { return {TaskKind::kTake, (last_ - first_) * kCellElements}; }
  void Handle() override {
    const Context& c = owner_->context_;
    const bool taken = push_ != nullptr;
    c.trace->Record(taken ? owner_->copy_track_ : owner_->sum_track_, taken ? "gradient" : "norm",
                    tensor_.value(), op_.started, op_.finished);
    if (taken) return owner_->OnTaken(push_);
    if (!op_.status.ok()) {
      c.fail(Annotate(op_.status, fmt::format("the norm of the gradient of tensor '{}'",
                                              c.layout->tensor(tensor_).name)));
    }
    owner_->OnSummed(tensor_);
  }

 private:
  int64_t FirstCell() const {
    return owner_->context_.layout->tensor(tensor_).first_cell + part_.begin / kCellElements +
           first_;
  }
  double* Sums() const { return &owner_->cells_[static_cast<size_t>(FirstCell())]; }
  size_t SumsOffset() const { return static_cast<size_t>(FirstCell()) * sizeof(double); }
  size_t SumsBytes() const { return static_cast<size_t>(last_ - first_) * sizeof(double); }

  void Sum(void* stream, double* sums) {
    const FloatType type = owner_->TypeOf(tensor_);
    const int64_t begin = first_ * kCellElements;
    const std::byte* const lent = owner_->tensors_[tensor_.value()].lent;
    const std::byte* const from = lent != nullptr ? lent : part_.home;
    const int64_t end = std::min(last_ * kCellElements, part_.elements);
    CellSquareSumsOn(stream, from + begin * SizeOf(type), type, static_cast<size_t>(end - begin),
                     sums);
  }

  void Take() {
    const FloatType type = owner_->TypeOf(tensor_);
    for (int64_t cell = first_; cell < last_; ++cell) {
      const int64_t begin = cell * kCellElements;
      const auto n = static_cast<size_t>(std::min(kCellElements, part_.elements - begin));
      std::byte* const home = part_.home + begin * SizeOf(type);
      const std::byte* const from =
          push_->data.data() + (part_.begin - push_->first + begin) * SizeOf(type);
      if (push_->adding) {
        Accumulate(home, from, type, n);
      } else {
        std::memcpy(home, from, n * static_cast<size_t>(SizeOf(type)));
      }
      if (sums_) Sums()[cell - first_] = CellSquareSum(home, type, n);
    }
  }

  Gradients* const owner_;
  const TensorIndex tensor_;
  const Part part_;
  const int64_t first_;  // cells of the part
  const int64_t last_;
  PushOp* push_ = nullptr;  // if it takes
  bool sums_ = true;
  DeviceOp op_;  // its times also where a worker works
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRADIENT_OPS_H_
