#include "offload/run/chunk_work.h"

#include "offload/run/planted_bug.h"

namespace sluice {

void Updater::ChunkWork::Run() {
  const Context& c = owner_->context_;
  begin = c.clock->Now();
  const bool verifies = !Planted(c, PlantedBug::kUnverifiedRead);
  if (streaming && verifies) status = BlockStore::Verify(read);
  if (params_read && verifies && status.ok()) status = BlockStore::Verify(param_read);
  if (status.ok()) {
    Launch(nullptr);
    if (streaming) BlockStore::Seal(&write);
    if (param_on_nvme) BlockStore::Seal(&param_write);
  }
  end = c.clock->Now();
  c.inbox->Post(this);
}

void Updater::ChunkWork::Handle() {
  if (on_device) {
    status = device_op.status;
    begin = device_op.started;
    end = device_op.finished;
  }
  owner_->OnComputed(this);
}

void Updater::ChunkWork::Launch(void* stream) {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const FloatType param_type = layout.types.param.floats();
  const FloatType grad_type = layout.types.grad;
  const bool lent = layout.keep == Keep::kStates;
  std::byte* const params = lent                   ? nullptr
                            : param_buffer.empty() ? c.memory->ParamsOf(layout)
                                                   : param_buffer.data();
  const std::byte* const grads = c.memory->GradsOf(layout);
  const ChunkStates all = StatesAt(layout, states, params);
  for (const ChunkRun& run : c.layout->runs(layout)) {
    const auto n = static_cast<size_t>(run.elements);
    const std::optional<TensorUpdate>& update = owner_->updates_[run.tensor.value()];
    if (update) {
      const FloatType type = lent ? update->lent.type : param_type;
      std::byte* const out = lent ? update->lent.data + run.tensor_offset * SizeOf(type)
                                  : params + run.chunk_offset * SizeOf(type);
      if (lent) c.layout->format()->Adopt(all, run.chunk_offset, out, type, n);
      c.update->Run(stream, update->scalars, all,
                    {.at = run.chunk_offset,
                     .elements = n,
                     .grad = update->lent_grad != nullptr
                                 ? update->lent_grad + run.tensor_offset * SizeOf(grad_type)
                                 : grads + run.chunk_offset * SizeOf(grad_type),
                     .grad_type = grad_type,
                     .param_out = out,
                     .param_type = type});
    } else if (!param_buffer.empty()) {  // never on the device
      // The buffer replaces the whole chunk, so it also needs what is left alone.
      c.layout->format()->Read(all, kMasterIndex, run.chunk_offset,
                               params + run.chunk_offset * SizeOf(param_type), param_type, n);
    }
  }
}

}  // namespace sluice
