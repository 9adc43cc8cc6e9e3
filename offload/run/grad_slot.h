// offload/run/grad_slot.h
//
// A chunk of gradients that live on NVMe, while it is in a buffer: its transfers, and what a worker
// does with it. Internal to GradSpill, which says what happens when.
//
// Threads: Run on a worker, the rest on the control thread. Lives as long as the GradSpill; used
// for one chunk after another.

#ifndef SLUICE_OFFLOAD_RUN_GRAD_SLOT_H_
#define SLUICE_OFFLOAD_RUN_GRAD_SLOT_H_

#include <algorithm>

#include "offload/run/grad_spill.h"
#include "offload/run/step_transfer.h"
#include "optim/convert.h"
#include "optim/norm.h"

namespace sluice {

// One chunk in a buffer, or about to be: [read and checked] -> a part of a push is copied or added
// -> kept, or summed and sealed -> written -> free.
class GradSpill::Slot final : public BufferPool::Waiter, public Task {
 public:
  explicit Slot(GradSpill* owner)
      : read(owner, this, &GradSpill::OnRead),
        write(owner, this, &GradSpill::OnWritten),
        copied(this, &GradSpill::OnCopied),
        ran(this, &GradSpill::OnTask),
        staged(this),
        owner_(owner) {}

  void OnBuffer(MemoryView view) override {
    buffer = view;
    owner_->OnBuffer(this);
  }
  void Run() override {
    if (job == Job::kVerify) status = BlockStore::Verify(read);
    if (job == Job::kAdd) Accumulate(At(offset), staging.data(), type(), piece / element());
    if (job == Job::kFinish) Finish();
    owner_->context_.inbox->Post(&ran);
  }
  TaskCost cost() const override { return {TaskKind::kTake, layout().elements}; }

  using Transfer = StepTransfer<GradSpill, Slot>;
  struct Done final : Event {
    using Next = void (GradSpill::*)(Slot*);
    Done(Slot* slot, Next next) : slot(slot), next(next) {}
    void Handle() override { (slot->owner_->*next)(slot); }
    Slot* const slot;
    const Next next;
  };
  // Where what is added lies meanwhile.
  struct Staged final : BufferPool::Waiter {
    explicit Staged(Slot* slot) : slot(slot) {}
    void OnBuffer(MemoryView view) override {
      slot->staging = view;
      slot->owner_->CopyPiece(slot);
    }
    Slot* const slot;
  };
  enum class Job : uint8_t { kVerify, kAdd, kFinish };

  const ChunkLayout& layout() const { return owner_->context_.layout->chunk(chunk); }
  BlockIndex block() const { return *owner_->context_.memory->blocks.grads[chunk.value()]; }
  FloatType type() const { return layout().types.grad; }
  size_t element() const { return static_cast<size_t>(SizeOf(type())); }
  size_t part_bytes() const { return static_cast<size_t>(part->what.elements) * element(); }
  // Of the part, so many bytes on.
  std::byte* At(size_t bytes) const {
    return buffer.data() + static_cast<size_t>(part->what.chunk_offset) * element() + bytes;
  }

  ChunkIndex chunk;
  bool busy = false;     // neither free nor kept
  bool loaded = false;   // the buffer holds what the chunk holds
  bool dirty = false;    // and more than its block
  uint32_t missing = 0;  // runs that were not put since it came here
  MemoryView buffer;
  MemoryView staging;
  Push* push = nullptr;
  const Part* part = nullptr;  // of the push
  size_t offset = 0;           // in the part, bytes
  size_t piece = 0;
  Job job = Job::kVerify;
  bool sums = false;  // of kFinish
  absl::Status status;
  DeviceOp copy;
  TimePoint began{0};
  Transfer read;
  Transfer write;
  Done copied;
  Done ran;
  Staged staged;

 private:
  void Finish() {
    const ModelLayout& model = *owner_->context_.layout;
    const auto runs = model.runs(layout());
    for (uint32_t r = 0; sums && r < runs.size(); ++r) {
      if (owner_->put_[layout().first_run + r] == 0) continue;
      const ChunkRun& run = runs[r];
      const int64_t first = model.tensor(run.tensor).first_cell + run.tensor_offset / kCellElements;
      for (int64_t at = 0; at < run.elements; at += kCellElements) {
        const auto begin = static_cast<size_t>(run.chunk_offset + at) * element();
        owner_->cells_[static_cast<size_t>(first + at / kCellElements)] =
            CellSquareSum(buffer.data() + begin, type(),
                          static_cast<size_t>(std::min(kCellElements, run.elements - at)));
      }
    }
    if (dirty) BlockStore::Seal(&write);
  }

  GradSpill* const owner_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRAD_SLOT_H_
