#include "offload/run/chunk_work.h"

#include <algorithm>

#include "offload/run/planted_bug.h"

namespace sluice {

Updater::ChunkWork::ChunkWork(Updater* owner)
    : read(this, &Updater::OnRead),
      write(this, &Updater::OnStatesStored),
      param_write(this, &Updater::OnParamsWritten),
      param_read(this, &Updater::OnParamsRead),
      owner_(owner) {
  const Context& c = owner->context_;
  const int64_t task = c.placement->task_elements;
  const int64_t parts = (c.layout->chunk_elements() + task - 1) / task;
  parts_ = std::vector<Part>(static_cast<size_t>(parts));
  for (Part& part : parts_) part.work = this;
}

void Updater::ChunkWork::Submit() {
  const Context& c = owner_->context_;
  const int64_t elements = c.layout->chunk(chunk).elements;
  const int64_t task = on_device ? elements : c.placement->task_elements;
  part_count_ = 0;
  for (int64_t at = 0; at < elements; at += task) {
    Part& part = parts_[part_count_++];
    part.first = at;
    part.last = std::min(at + task, elements);
  }
  parts_left_.store(part_count_, std::memory_order_relaxed);
  if (!on_device) return c.executor->Submit(&parts_[0]);
  device_op_.stream = StreamKind::kCompute;
  device_op_.work = this;
  device_op_.inbox = c.inbox;
  device_op_.event = this;
  c.device->Enqueue(&device_op_);
}

// After its count has gone down, all of the work may be used again.
void Updater::ChunkWork::RunPart(Part* part) {
  const Context& c = owner_->context_;
  part->begin = c.clock->Now();
  if (part == &parts_[0]) {
    if (!Verifies()) return c.inbox->Post(this);
    for (size_t i = 1; i < part_count_; ++i) c.executor->Submit(&parts_[i]);
  }
  Update(nullptr, part->first, part->last);
  part->end = c.clock->Now();
  if (parts_left_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  if (streaming) BlockStore::Seal(&write);
  if (param_on_nvme) BlockStore::Seal(&param_write);
  part->end = c.clock->Now();
  c.inbox->Post(this);
}

bool Updater::ChunkWork::Verifies() {
  if (Planted(owner_->context_, PlantedBug::kUnverifiedRead)) return true;
  if (streaming) status = BlockStore::Verify(read);
  if (params_read && status.ok()) status = BlockStore::Verify(param_read);
  return status.ok();
}

void Updater::ChunkWork::Handle() {
  if (on_device) {
    status = device_op_.status;
    parts_[0].begin = device_op_.started;
    parts_[0].end = device_op_.finished;
  }
  owner_->OnComputed(this);
}

void Updater::ChunkWork::Launch(void* stream) {
  Update(stream, 0, owner_->context_.layout->chunk(chunk).elements);
}

void Updater::ChunkWork::Update(void* stream, int64_t first, int64_t last) {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const FloatType param_type = layout.types.param.floats();
  const FloatType grad_type = layout.types.grad;
  const bool lent = layout.keep == Keep::kStates;
  const std::byte* const grads = c.memory->GradsOf(layout);
  const ChunkStates all = StatesAt(layout, states, params);
  for (const ChunkRun& run : c.layout->runs(layout)) {
    const int64_t begin = std::max(first, run.chunk_offset);
    const int64_t end = std::min(last, run.chunk_offset + run.elements);
    if (begin >= end) continue;
    const auto n = static_cast<size_t>(end - begin);
    const std::optional<TensorUpdate>& update = owner_->updates_[run.tensor.value()];
    if (update) {
      const FloatType type = lent ? update->lent.type : param_type;
      const int64_t of_tensor = run.tensor_offset + begin - run.chunk_offset;
      std::byte* const out =
          lent ? update->lent.data + of_tensor * SizeOf(type) : params + begin * SizeOf(type);
      if (lent) c.layout->format()->Adopt(all, begin, out, type, n);
      c.update->Run(stream, update->scalars, all,
                    {.at = begin,
                     .elements = n,
                      .grad = update->lent_grad != nullptr
                                  ? update->lent_grad + of_tensor * SizeOf(grad_type)
                                  : grads + begin * SizeOf(grad_type),
                     .grad_type = grad_type,
                     .param_out = out,
                     .param_type = type});
    } else if (piece != nullptr) {
      // The buffer replaces the whole chunk, so it also needs what is left alone.
      c.layout->format()->Read(all, kMasterIndex, begin, params + begin * SizeOf(param_type),
                               param_type, n);
    }
  }
}

}  // namespace sluice
