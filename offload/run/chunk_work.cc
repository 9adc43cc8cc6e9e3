#include "offload/run/chunk_work.h"

#include <algorithm>

#include "core/status.h"
#include "offload/run/planted_bug.h"

namespace sluice {

Updater::ChunkWork::ChunkWork(Updater* owner)
    : read(owner, this, &Updater::OnRead),
      write(owner, this, &Updater::OnStatesStored),
      param_write(owner, this, &Updater::OnParamsWritten),
      param_read(owner, this, &Updater::OnParamsRead),
      grad_read(owner, this, &Updater::OnGradsRead),
      grads_come(this),
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
    part.status = absl::OkStatus();
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
  if (ChecksOnTheWay()) {
    part->status = UpdateInPieces(part->first, part->last);
  } else {
    Update(nullptr, part->first, part->last, {});
  }
  part->end = c.clock->Now();
  if (parts_left_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  status = EndParts();
  part->end = c.clock->Now();
  c.inbox->Post(this);
}

// What was read, but for states that each part checks as it updates them.
bool Updater::ChunkWork::Verifies() {
  if (Planted(owner_->context_, PlantedBug::kUnverifiedRead)) return true;
  if (streaming && !ChecksOnTheWay()) status = BlockStore::Verify(read);
  if (!grad_buffer.empty() && status.ok()) status = BlockStore::Verify(grad_read);
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

// What is lent is adopted into the masters first, or is the masters, so that an update changes what
// is the caller's: all of the chunk must have been checked before.
bool Updater::ChunkWork::ChecksOnTheWay() const {
  const Context& c = owner_->context_;
  return streaming && c.update->adds_sums() && !IsLent(c.layout->chunk(chunk).keep);
}

void Updater::ChunkWork::Launch(void* stream) {
  Update(stream, 0, owner_->context_.layout->chunk(chunk).elements, {});
}

// Until all of the chunk has been found to be what was written, nothing of it leaves the chunk's
// buffers: parameters that others see are made of the masters at the end.
absl::Status Updater::ChunkWork::UpdateInPieces(int64_t first, int64_t last) {
  const bool verifies = !Planted(owner_->context_, PlantedBug::kUnverifiedRead);
  const BlockPieces& pieces = read.pieces();
  const ChunkLayout& layout = owner_->context_.layout->chunk(chunk);
  const auto piece_elements = static_cast<int64_t>(pieces.column_bytes() / sizeof(float));
  SLUICE_CHECK(first % piece_elements == 0);
  for (int64_t begin = first; begin < last; begin += piece_elements) {
    const auto p = static_cast<uint32_t>(begin / piece_elements);
    const int64_t end = std::min(begin + piece_elements, layout.capacity);
    StripeSums before, after;
    AddUnsummed(&before, begin, end);
    Update(nullptr, begin, end, {&before, &after, pieces.column_stripes()});
    AddUnsummed(&after, begin, end);
    if (verifies) SLUICE_RETURN_IF_ERROR(BlockStore::VerifyPiece(read, p, before));
    BlockStore::SealPiece(&write, p, after);
  }
  return absl::OkStatus();
}

// By whoever ends the last part.
absl::Status Updater::ChunkWork::EndParts() {
  for (const Part& part : parts()) SLUICE_RETURN_IF_ERROR(part.status);
  if (ChecksOnTheWay()) {
    if (!Planted(owner_->context_, PlantedBug::kUnverifiedRead))
      SLUICE_RETURN_IF_ERROR(BlockStore::VerifyPadding(read));
    BlockStore::EndSeal(&write);
    if (piece == nullptr) PublishParams();
  } else if (streaming) {
    BlockStore::Seal(&write);
  }
  if (param_on_nvme) BlockStore::Seal(&param_write);
  return absl::OkStatus();
}

// What of the elements from `first` on, up to `last`, the update's kernel does not add: what no run
// has that is updated, and ends of runs that fill no stripe.
void Updater::ChunkWork::AddUnsummed(StripeSums* sums, int64_t first, int64_t last) const {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const BlockPieces& pieces = read.pieces();
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    for (uint32_t field = 0; field < pieces.columns(); ++field) {
      const int64_t at = field * layout.capacity + begin;
      AddStripes(sums,
                 {states + at * sizeof(float), static_cast<size_t>(end - begin) * sizeof(float)},
                 field * pieces.column_stripes() +
                     static_cast<size_t>(begin - first) * sizeof(float) / kStripeBytes);
    }
  };
  constexpr int64_t kElements = kStripeBytes / sizeof(float);  // of a stripe
  int64_t done = first;
  for (const ChunkRun& run : c.layout->runs(layout)) {
    const int64_t begin = std::max(first, run.chunk_offset);
    const int64_t end = std::min(last, run.chunk_offset + run.elements);
    if (begin >= end || !owner_->updates_[run.tensor.value()]) continue;
    add(done, begin);
    done = begin + (end - begin) / kElements * kElements;
  }
  add(done, last);
}

void Updater::ChunkWork::PublishParams() const {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const FloatType type = layout.types.param.floats();
  std::byte* const params = c.memory->ParamsOf(layout);
  for (const ChunkRun& run : c.layout->runs(layout)) {
    if (!owner_->updates_[run.tensor.value()]) continue;
    c.layout->format()->Read(StatesAt(layout, states, params), kMasterIndex, run.chunk_offset,
                             params + run.chunk_offset * SizeOf(type), type,
                             static_cast<size_t>(run.elements));
  }
}

void Updater::ChunkWork::Update(void* stream, int64_t first, int64_t last, const Sums& sums) {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const FloatType param_type = layout.types.param.floats();
  const FloatType grad_type = layout.types.grad;
  const bool lent = IsLent(layout.keep);
  const bool is_master = c.layout->masters_are_lent(layout);
  const std::byte* const grads =
      grad_buffer.empty() ? c.memory->grad_home[chunk.value()] : grad_buffer.data();
  ChunkStates all = StatesAt(layout, states, params);
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
      if (is_master) {
        all.param = out - begin * SizeOf(type);
      } else if (lent) {
        c.layout->format()->Adopt(all, begin, out, type, n);
      }
      const bool hidden = is_master || (sums.before != nullptr && piece == nullptr);
      c.update->Run(
          stream, update->scalars, all,
          {.at = begin,
           .elements = n,
           .grad = update->lent_grad != nullptr ? update->lent_grad + of_tensor * SizeOf(grad_type)
                                                : grads + begin * SizeOf(grad_type),
           .grad_type = grad_type,
           .param_out = hidden ? nullptr : out,
           .param_type = type,
           .before = sums.before,
           .after = sums.after,
           .stripe = static_cast<size_t>(begin - first) * sizeof(float) / kStripeBytes,
           .column_stripes = sums.column_stripes});
    } else if (piece != nullptr) {  // never on the device
      // The buffer replaces the whole chunk, so it also needs what is left alone.
      c.layout->format()->Read(all, kMasterIndex, begin, params + begin * SizeOf(param_type),
                               param_type, n);
    }
  }
}

}  // namespace sluice
