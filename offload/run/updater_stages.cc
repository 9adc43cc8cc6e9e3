// What becomes of a chunk on its way: from the read of its states to where all of it is stored.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/chunk_work.h"
#include "offload/run/param_piece.h"
#include "offload/run/planted_bug.h"
#include "offload/run/updater.h"

namespace sluice {

void Updater::FailChunk(ChunkIndex chunk, const absl::Status& status) {
  const UnitIndex unit = context_.layout->chunk(chunk).unit;
  context_.fail(
      Annotate(status, fmt::format("updating unit '{}'", context_.layout->unit(unit).name)));
}

void Updater::OnRead(ChunkWork* work, const absl::Status& status) {
  work->status = status;
  if (!status.ok()) {
    FailChunk(work->chunk, status);
    return Retire(work);
  }
  if (failed_) return Retire(work);
  if (started_) {
    if (Active(work->chunk)) return LoadGrads(work);
    return Retire(work);
  }
  if (read_ahead_) return staged_.push_back(work);
  Retire(work);
}

// Gradients that are lent are not there.
void Updater::LoadGrads(ChunkWork* work) {
  const auto reads = [this](const ChunkRun& run) {
    const std::optional<TensorUpdate>& update = updates_[run.tensor.value()];
    return update && update->lent_grad == nullptr;
  };
  const ChunkLayout& layout = context_.layout->chunk(work->chunk);
  if (!context_.memory->blocks.grads[work->chunk.value()] ||
      std::ranges::none_of(context_.layout->runs(layout), reads)) {
    return BeginCompute(work);
  }
  context_.memory->grad_buffers.Take(&work->grads_come);
}

void Updater::OnGradBuffer(ChunkWork* work) {
  context_.store->StartRead(&work->grad_read, *context_.memory->blocks.grads[work->chunk.value()],
                            work->grad_buffer, IoPriority::kNormal);
}

void Updater::OnGradsRead(ChunkWork* work, const absl::Status& status) {
  if (!status.ok()) FailChunk(work->chunk, status);
  if (failed_) return Retire(work);
  grad_read_bytes_->Add(context_.store->extent_length(work->grad_read.block()).value());
  BeginCompute(work);
}

// Prepares what the workers will seal, finds where the parameters go, and submits.
void Updater::BeginCompute(ChunkWork* work) {
  begun_[work->chunk.value()] = true;
  const BlockMap& blocks = context_.memory->blocks;
  const ChunkLayout& chunk = context_.layout->chunk(work->chunk);
  work->param_on_nvme = blocks.params[work->chunk.value()].has_value();
  work->params_read = false;
  work->on_device = context_.placement->state_home[work->chunk.value()] == Tier::kHbm;
  if (work->streaming) {
    context_.store->PrepareWrite(&work->write, *blocks.states[work->chunk.value()],
                                 work->state_buffer);
  }
  if (const auto piece = context_.pieces->PieceOf(work->chunk)) return EnterPiece(work, *piece);
  work->piece = nullptr;
  work->params = IsLent(chunk.keep) ? nullptr : context_.memory->ParamsOf(chunk);
  Submit(work);
}

// Its part of the buffer is for the new copies, and first for the present ones if the update reads
// them.
void Updater::OnParamPlace(ChunkWork* work) {
  if (!work->param_on_nvme || !context_.layout->reads_params(context_.layout->chunk(work->chunk)))
    return Submit(work);
  work->params_read = true;
  context_.store->StartRead(&work->param_read, *context_.memory->blocks.params[work->chunk.value()],
                            work->param_part, IoPriority::kNormal);
}

void Updater::OnParamsRead(ChunkWork* work, const absl::Status& status) {
  if (status.ok() && !failed_) return Submit(work);
  ParamPiece* const piece = work->piece;
  const ChunkIndex chunk = work->chunk;
  OnNoParams(work, status);
  piece->Leave(chunk, false);
}

// The chunk is not updated: the present copies could not be read, or the runtime has failed.
void Updater::OnNoParams(ChunkWork* work, const absl::Status& status) {
  if (work->streaming) context_.store->Cancel(&work->write);
  if (!status.ok()) FailChunk(work->chunk, status);
  Retire(work);
}

void Updater::Submit(ChunkWork* work) {
  if (work->param_on_nvme) {
    context_.store->PrepareWrite(
        &work->param_write, *context_.memory->blocks.params[work->chunk.value()], work->param_part);
  }
  ++computing_;
  work->Submit();
}

void Updater::OnComputed(ChunkWork* work) {
  --computing_;
  if (!work->grad_buffer.empty())
    context_.memory->grad_buffers.Give(std::exchange(work->grad_buffer, {}));
  const ChunkIndex chunk = work->chunk;
  ParamPiece* const piece = work->piece;
  if (!work->status.ok()) {
    if (work->streaming) context_.store->Cancel(&work->write);
    if (work->param_on_nvme) context_.store->Cancel(&work->param_write);
    FailChunk(chunk, work->status);
    Retire(work);
    if (piece != nullptr) piece->Leave(chunk, false);
    return;
  }
  chunks_updated_->Add();
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
    if (updates_[run.tensor.value()]) elements_updated_->Add(run.elements);
  }
  TimePoint first = TimePoint::max();
  TimePoint last{0};
  for (const ChunkWork::Part& part : work->parts()) {
    for (size_t r = 0; r < part.spans.size(); ++r) {
      const auto& [begin, end] = part.spans[r];
      if (end == TimePoint{0}) continue;
      first = std::min(first, begin);
      last = std::max(last, end);
      update_ns_->Add((end - begin).count());
      context_.trace->Record(track_, ChunkWork::kRoundNames[r], chunk.value(), begin, end);
    }
  }
  chunk_ns_->Add((last - first).count());
  const bool lost = Planted(context_, PlantedBug::kLostWrite);
  const bool stores = work->streaming && !lost;
  if (work->streaming && lost) context_.store->Cancel(&work->write);
  work->stores_left = 1 + (stores ? 1 : 0) + (work->param_on_nvme ? 1 : 0);
  if (stores) {
    context_.store->StartWrite(&work->write, IoPriority::kNormal);
    if (Planted(context_, PlantedBug::kReuseBeforeWritten)) {
      context_.memory->state_buffers.Give(std::exchange(work->state_buffer, {}));
    }
  } else {
    EndStore();  // of the states: they are where they belong
  }
  if (work->param_on_nvme) {
    ++params_writing_;
    context_.store->StartWrite(&work->param_write, IoPriority::kUrgent);
  } else if (piece != nullptr) {
    piece->Leave(chunk, true);
  } else {
    OnParamsStored(chunk, absl::OkStatus());
  }
  EndOwnStore(work);
}

void Updater::OnParamsWritten(ChunkWork* work, const absl::Status& status) {
  --params_writing_;
  ParamPiece* const piece = work->piece;
  const ChunkIndex chunk = work->chunk;
  OnParamsStored(chunk, status);
  EndOwnStore(work);  // before others go on: it is not on its way any more
  piece->Leave(chunk, false);
}

void Updater::OnParamsStored(ChunkIndex chunk, const absl::Status& status) {
  const UnitIndex unit = context_.layout->chunk(chunk).unit;
  if (status.ok()) {
    CountWritten(chunk);
    if (--unit_left_[unit.value()] == 0) observer_->OnUnitUpdated(unit);
  } else {
    FailChunk(chunk, status);
  }
  EndStore();
}

void Updater::CountWritten(ChunkIndex chunk) {
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
    if (updates_[run.tensor.value()]) unwritten_[run.tensor.value()] -= run.elements;
  }
}

void Updater::OnStatesStored(ChunkWork* work, const absl::Status& status) {
  if (!status.ok()) FailChunk(work->chunk, status);
  EndStore();
  EndOwnStore(work);
}

// A chunk's states, or its parameters, are where they belong, or never will be.
void Updater::EndStore() {
  SLUICE_CHECK(stores_left_ > 0);
  if (--stores_left_ > 0) return;
  started_ = false;
  streaming_.Restart();
  if (!next_order_.empty()) Order();
}

void Updater::EndOwnStore(ChunkWork* work) {
  if (--work->stores_left == 0) Retire(work);
}

// The work is idle again; whoever can use its place or its buffer goes on.
void Updater::Retire(ChunkWork* work) {
  if (!work->state_buffer.empty())
    context_.memory->state_buffers.Give(std::exchange(work->state_buffer, {}));
  if (!work->grad_buffer.empty())
    context_.memory->grad_buffers.Give(std::exchange(work->grad_buffer, {}));
  if (work->streaming) {
    on_its_way_[work->chunk.value()] = false;
    streaming_.Ended(work->drive);
  }
  (work->streaming ? idle_streaming_ : idle_resident_).push_back(work);
  --busy_;
  GoOn();
}

void Updater::GoOn() {
  Pump();
  if (!busy() && (stores_left_ == 0 || failed_)) observer_->OnUpdaterIdle();
}

}  // namespace sluice
