#include "offload/run/grad_spill.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/grad_slot.h"

namespace sluice {

GradSpill::GradSpill(const Context& context, std::span<double> cells, std::function<void()> on_idle)
    : context_(context),
      cells_(cells),
      on_idle_(std::move(on_idle)),
      index_(context.layout->chunks().size(), 0),
      tensors_(context.layout->tensors().size()),
      read_bytes_(context.metrics->Get("nvme_gradient_read_bytes")),
      written_bytes_(context.metrics->Get("nvme_gradient_write_bytes")) {
  const ModelLayout& layout = *context.layout;
  uint32_t runs = 0;
  for (uint32_t c = 0; c < layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = layout.chunks()[c];
    runs = std::max(runs, chunk.first_run + chunk.run_count);
    if (!context.memory->blocks.grads[c]) continue;
    index_[c] = static_cast<uint32_t>(chunks_.size());
    chunks_.emplace_back();
    names_.emplace_back(c);
    for (uint32_t r = 0; r < chunk.run_count; ++r) {
      parts_.push_back(
          {.chunk = ChunkIndex(c), .run = chunk.first_run + r, .what = layout.runs(chunk)[r]});
    }
  }
  for (size_t begin = 0, end = 0; begin < parts_.size(); begin = end) {  // a tensor's lie together
    const TensorIndex tensor = parts_[begin].what.tensor;
    while (end < parts_.size() && parts_[end].what.tensor == tensor) ++end;
    tensors_[tensor.value()] = std::span(parts_).subspan(begin, end - begin);
  }
  put_.resize(runs, 0);
  fresh_.resize(runs, 0);
  const size_t buffers = context.memory->grad_buffers.count();
  for (size_t i = 0; i < buffers; ++i) {
    slots_.push_back(std::make_unique<Slot>(this));
    free_slots_.push_back(slots_.back().get());
  }
  kept_max_ = std::max<size_t>(1, buffers / 2);
  kept_.reserve(buffers);
  track_ = context.trace->AddTrack("gradients to NVMe");
}

GradSpill::~GradSpill() = default;

void GradSpill::SetSum(Chunk* chunk, Sum sum) {
  if (chunk->sum == Sum::kMissing) --sums_left_;
  if (sum == Sum::kMissing) ++sums_left_;
  chunk->sum = sum;
}

void GradSpill::Put(Push* push) {
  push->next_part = push->under_way = 0;
  push->status = failure_;
  if (!failure_.ok()) return push->OnSpilled(failure_);
  waiting_.Push(push);
  PumpPushes();
}

void GradSpill::Pump() {
  PumpPushes();
  PumpSums();
}

// In the order of the pushes: one whose chunk is at work holds up those behind it.
void GradSpill::PumpPushes() {
  while (failure_.ok() && !waiting_.empty()) {
    Push* push = waiting_.Pop();
    const std::span<const Part> parts = tensors_[push->tensor.value()];
    Slot* slot = Occupy(parts[push->next_part].chunk);
    if (slot != nullptr) {
      slot->push = push;
      slot->part = &parts[push->next_part++];
      slot->offset = 0;
      ++push->under_way;
    }
    if (push->next_part < parts.size()) waiting_.PushFront(push);
    if (slot == nullptr) return;
    Begin(slot);
  }
}

void GradSpill::PumpSums() {
  while (finishing_ && failure_.ok() && next_sum_ < chunks_.size() && !free_slots_.empty()) {
    const Chunk& chunk = chunks_[next_sum_];
    const ChunkIndex name = names_[next_sum_++];
    if (chunk.sum == Sum::kMissing && chunk.slot == nullptr) Begin(Occupy(name));
  }
}

// The chunk's slot, from now on at work; null if it is so already, or there is none.
GradSpill::Slot* GradSpill::Occupy(ChunkIndex chunk) {
  Chunk& state = StateOf(chunk);
  if (state.slot != nullptr && state.slot->busy) return nullptr;
  if (state.slot != nullptr) {
    Unkeep(state.slot);
    return state.slot;
  }
  if (free_slots_.empty()) return nullptr;
  Slot* slot = free_slots_.back();
  free_slots_.pop_back();
  state.slot = slot;
  slot->chunk = chunk;
  slot->busy = true;
  slot->loaded = slot->dirty = false;
  slot->missing = context_.layout->chunk(chunk).run_count;
  ++busy_;
  return slot;
}

void GradSpill::Begin(Slot* slot) {
  slot->loaded ? Work(slot) : context_.memory->grad_buffers.Take(slot);
}

void GradSpill::OnBuffer(Slot* slot) {
  if (!failure_.ok()) return End(slot, failure_, "reading");
  if (StateOf(slot->chunk).stored) {
    return context_.store->StartRead(&slot->read, slot->block(), slot->buffer, IoPriority::kUrgent);
  }
  slot->loaded = true;
  Work(slot);
}

void GradSpill::OnRead(Slot* slot, const absl::Status& status) {
  if (!status.ok() || !failure_.ok()) return End(slot, status, "reading");
  read_bytes_->Add(context_.store->extent_length(slot->block()).value());
  slot->job = Slot::Job::kVerify;
  context_.executor->Submit(slot);
}

// On a chunk that is in its buffer.
void GradSpill::Work(Slot* slot) {
  if (slot->push == nullptr) return Store(slot);
  if (slot->push->adding) return context_.memory->param_buffers.Take(&slot->staged);
  CopyPiece(slot);
}

void GradSpill::CopyPiece(Slot* slot) {
  const Push& push = *slot->push;
  const size_t left = slot->part_bytes() - slot->offset;
  slot->piece = push.adding ? std::min(left, slot->staging.size()) : left;
  const size_t begin =
      static_cast<size_t>(slot->part->what.tensor_offset - push.first) * slot->element() +
      slot->offset;
  slot->copy.stream = StreamKind::kDeviceToHost;
  slot->copy.from = push.data.subspan(begin, slot->piece);
  slot->copy.to = push.adding ? slot->staging.data() : slot->At(slot->offset);
  slot->copy.inbox = context_.inbox;
  slot->copy.event = &slot->copied;
  context_.device->OrderAfter(StreamKind::kDeviceToHost, *push.fence);
  context_.device->Enqueue(&slot->copy);
}

void GradSpill::OnCopied(Slot* slot) {
  context_.trace->Record(track_, "gradient", slot->push->tensor.value(), slot->copy.started,
                         slot->copy.finished);
  if (!slot->copy.status.ok() || !slot->push->adding) return EndPart(slot, slot->copy.status);
  slot->job = Slot::Job::kAdd;
  context_.executor->Submit(slot);
}

void GradSpill::OnTask(Slot* slot) {
  switch (slot->job) {
    case Slot::Job::kVerify:
      if (!slot->status.ok() || !failure_.ok()) return End(slot, slot->status, "reading");
      slot->loaded = true;
      return Work(slot);
    case Slot::Job::kAdd:
      slot->offset += slot->piece;
      return slot->offset < slot->part_bytes() ? CopyPiece(slot) : EndPart(slot, absl::OkStatus());
    case Slot::Job::kFinish:
      if (slot->sums) SetSum(&StateOf(slot->chunk), Sum::kThere);
      if (slot->dirty && !failure_.ok()) context_.store->Cancel(&slot->write);
      if (!slot->dirty || !failure_.ok()) return Free(slot);
      slot->began = context_.clock->Now();
      return context_.store->StartWrite(&slot->write, IoPriority::kUrgent);
  }
}

// The part has been put, or could not be.
void GradSpill::EndPart(Slot* slot, const absl::Status& status) {
  if (!slot->staging.empty()) context_.memory->param_buffers.Give(std::exchange(slot->staging, {}));
  Push* const push = std::exchange(slot->push, nullptr);
  if (push->status.ok() && !status.ok()) {
    push->status = Annotate(status, fmt::format("taking the gradient of tensor '{}'",
                                                context_.layout->tensor(push->tensor).name));
    context_.fail(push->status);
  }
  if (push->status.ok()) push->status = failure_;
  slot->dirty = true;
  put_[slot->part->run] = 1;
  SetSum(&StateOf(slot->chunk), Sum::kMissing);
  if (std::exchange(fresh_[slot->part->run], uint8_t{1}) == 0) --slot->missing;
  // Whoever gets this slot's buffer may end another part of the same push within the call.
  const bool ended =
      --push->under_way == 0 && push->next_part == tensors_[push->tensor.value()].size();
  if (!failure_.ok()) {
    Free(slot);
  } else if (slot->missing == 0) {
    Store(slot);
  } else {
    Keep(slot);
  }
  if (ended) push->OnSpilled(push->status);
  CheckIdle();
}

void GradSpill::Keep(Slot* slot) {
  slot->busy = false;
  --busy_;
  kept_.push_back(slot);
  Pump();
  if (kept_.size() <= kept_max_) return;
  Slot* const oldest = kept_.front();
  Unkeep(oldest);
  Store(oldest);
}

void GradSpill::Unkeep(Slot* slot) {
  std::erase(kept_, slot);
  slot->busy = true;
  ++busy_;
}

void GradSpill::StoreKept() {
  while (!kept_.empty()) {
    Slot* const oldest = kept_.front();
    Unkeep(oldest);
    Store(oldest);
  }
}

void GradSpill::Store(Slot* slot) {
  slot->sums = boundary_ || finishing_;
  if (slot->dirty) context_.store->PrepareWrite(&slot->write, slot->block(), slot->buffer);
  slot->job = Slot::Job::kFinish;
  context_.executor->Submit(slot);
}

void GradSpill::OnWritten(Slot* slot, const absl::Status& status) {
  if (!status.ok()) return End(slot, status, "writing");
  context_.trace->Record(track_, "store", slot->chunk.value(), slot->began, context_.clock->Now());
  written_bytes_->Add(context_.store->extent_length(slot->block()).value());
  StateOf(slot->chunk).stored = true;
  Free(slot);
}

// A transfer of the chunk failed, or the runtime has meanwhile.
void GradSpill::End(Slot* slot, const absl::Status& status, const char* what) {
  if (!status.ok() && failure_.ok()) {
    const UnitIndex unit = context_.layout->chunk(slot->chunk).unit;
    context_.fail(Annotate(
        status, fmt::format("{} gradients of unit '{}'", what, context_.layout->unit(unit).name)));
  }
  slot->push != nullptr ? EndPart(slot, absl::OkStatus()) : Free(slot);
}

void GradSpill::Free(Slot* slot) {
  const ChunkLayout& chunk = context_.layout->chunk(slot->chunk);
  StateOf(slot->chunk).slot = nullptr;
  std::fill_n(fresh_.begin() + chunk.first_run, chunk.run_count, uint8_t{0});
  slot->busy = false;
  --busy_;
  free_slots_.push_back(slot);
  context_.memory->grad_buffers.Give(std::exchange(slot->buffer, {}));
  Pump();
  CheckIdle();
}

void GradSpill::CheckIdle() {
  if (idle()) on_idle_();
}

bool GradSpill::Finish() {
  if (!idle()) return false;
  finishing_ = !kept_.empty() || sums_left_ > 0;
  if (!finishing_) return true;
  next_sum_ = 0;
  StoreKept();
  PumpSums();
  return false;
}

void GradSpill::Replaced(TensorIndex tensor) {
  for (const Part& part : tensors_[tensor.value()]) {
    Chunk& chunk = StateOf(part.chunk);
    SLUICE_CHECK(chunk.slot == nullptr);
    put_[part.run] = 1;
    chunk.stored = true;
    SetSum(&chunk, Sum::kMissing);
  }
}

void GradSpill::Clear(TensorIndex tensor) {
  SLUICE_CHECK(idle());
  for (const Part& part : tensors_[tensor.value()]) {
    Chunk& chunk = StateOf(part.chunk);
    put_[part.run] = 0;
    if (std::exchange(fresh_[part.run], uint8_t{0}) != 0) ++chunk.slot->missing;
    const ChunkLayout& layout = context_.layout->chunk(part.chunk);
    const auto first = put_.begin() + layout.first_run;
    if (std::count(first, first + layout.run_count, uint8_t{0}) < layout.run_count) continue;
    chunk.stored = false;
    SetSum(&chunk, Sum::kNone);
    if (chunk.slot == nullptr) continue;
    Unkeep(chunk.slot);
    Free(chunk.slot);
  }
}

void GradSpill::ClearAll() {
  SLUICE_CHECK(idle());
  std::fill(put_.begin(), put_.end(), uint8_t{0});
  for (Chunk& chunk : chunks_) {
    chunk.stored = false;
    chunk.sum = Sum::kNone;
  }
  sums_left_ = 0;
  for (Slot* slot : std::exchange(kept_, {})) {
    slot->busy = true;
    ++busy_;
    Free(slot);
  }
}

void GradSpill::Fail(const absl::Status& failure) {
  failure_ = failure;
  finishing_ = false;
  while (!kept_.empty()) {
    Slot* const slot = kept_.front();
    Unkeep(slot);
    Free(slot);
  }
  IntrusiveList<Push> waiting = std::exchange(waiting_, {});
  while (!waiting.empty()) {
    Push* push = waiting.Pop();
    if (push->status.ok()) push->status = failure;
    push->next_part = tensors_[push->tensor.value()].size();
    if (push->under_way == 0) push->OnSpilled(push->status);
  }
  CheckIdle();
}

}  // namespace sluice
