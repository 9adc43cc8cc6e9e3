#include "offload/run/updater.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/chunk_work.h"
#include "offload/run/param_piece.h"
#include "offload/run/planted_bug.h"

namespace sluice {

Updater::Updater(const Context& context, Observer* observer)
    : context_(context),
      observer_(observer),
      streaming_(SharesOf(context.store->drives(),
                          static_cast<uint32_t>(context.memory->state_buffers.count()))),
      unit_left_(context.layout->units().size(), 0),
      unwritten_(context.layout->tensors().size()),
      on_its_way_(context.layout->chunks().size(), false),
      begun_(context.layout->chunks().size(), false),
      updates_(context.layout->tensors().size()),
      coming_(context.pieces->pieces().size(), 0),
      piece_at_(context.pieces->pieces().size(), nullptr),
      chunks_updated_(context.metrics->Get("chunks_updated")),
      elements_updated_(context.metrics->Get("elements_updated")),
      update_ns_(context.metrics->Get("update_compute_ns")),
      chunk_ns_(context.metrics->GetTimes("update_chunk_ns")),
      grad_read_bytes_(context.metrics->Get("nvme_gradient_read_bytes")) {
  const size_t streaming = context.overlap ? context.memory->state_buffers.count() : 1;
  const size_t resident =
      context.overlap ? static_cast<size_t>(ResidentUpdates(context.executor->concurrency())) : 1;
  for (size_t i = 0; i < streaming + resident; ++i) {
    works_.push_back(std::make_unique<ChunkWork>(this));
    works_.back()->streaming = i < streaming;
    (i < streaming ? idle_streaming_ : idle_resident_).push_back(works_.back().get());
  }
  // A piece that is open has a chunk or a buffer.
  const size_t open = std::min(works_.size() + context.memory->param_buffers.count(),
                               context.pieces->pieces().size());
  for (size_t i = 0; i < open; ++i) {
    piece_pool_.push_back(std::make_unique<ParamPiece>(this));
    free_pieces_.push_back(piece_pool_.back().get());
  }
  context.memory->param_buffers.SetKeeper(this);
  for (uint32_t u = 0; u < context.layout->units().size(); ++u) unit_order_.push_back(UnitIndex(u));
  track_ = context.trace->AddTrack(context.update->rule().name());
  Order();
}

Updater::~Updater() { context_.memory->param_buffers.SetKeeper(nullptr); }

void Updater::SetOrder(std::span<const UnitIndex> order) {
  named_.assign(unit_order_.size(), false);
  next_order_.clear();
  for (const std::span<const UnitIndex> list : {order, std::span<const UnitIndex>(unit_order_)}) {
    for (UnitIndex unit : list) {
      if (!named_[unit.value()]) next_order_.push_back(unit);
      named_[unit.value()] = true;
    }
  }
  if (next_order_ == unit_order_) return next_order_.clear();
  if (idle() && staged_.empty()) Order();
}

// Splits the chunks, in the order of their units, by where their states live. Not while a step or
// what was read for one goes through the present order.
void Updater::Order() {
  if (!next_order_.empty()) unit_order_.swap(next_order_);
  next_order_.clear();
  streaming_.Clear();
  resident_.clear();
  for (UnitIndex u : unit_order_) {
    const UnitLayout& unit = context_.layout->unit(u);
    for (uint32_t c = unit.first_chunk; c < unit.first_chunk + unit.chunk_count; ++c) {
      if (const auto& block = context_.memory->blocks.states[c]) {
        streaming_.Add(ChunkIndex(c), context_.store->drive(*block));
      } else {
        resident_.push_back(ChunkIndex(c));
      }
    }
  }
}

void Updater::AllowReadAhead() {
  if (!context_.overlap) return;
  read_ahead_ = true;
  Pump();
}

void Updater::StopReadAhead() {
  read_ahead_ = false;
  if (started_) return;
  while (!staged_.empty()) {
    ChunkWork* work = staged_.front();
    staged_.pop_front();
    Retire(work);
  }
  streaming_.Restart();
}

void Updater::Fail() {
  failed_ = true;
  while (!staged_.empty()) {
    ChunkWork* const work = staged_.front();
    staged_.pop_front();
    Retire(work);
  }
  for (const auto& piece : piece_pool_) Settle(piece.get());
}

bool Updater::Active(ChunkIndex chunk) const {
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
    if (updates_[run.tensor.value()]) return true;
  }
  return false;
}

void Updater::Start(std::vector<std::optional<TensorUpdate>>* updates) {
  SLUICE_CHECK(!started_ && stores_left_ == 0);
  updates_.swap(*updates);
  for (uint32_t c = 0; c < context_.layout->chunks().size(); ++c) {
    if (!Active(ChunkIndex(c))) continue;
    stores_left_ += 2;
    if (const auto piece = context_.pieces->PieceOf(ChunkIndex(c))) ++coming_[*piece];
    ++unit_left_[context_.layout->chunks()[c].unit.value()];
  }
  if (stores_left_ == 0) return;
  for (uint32_t t = 0; t < updates_.size(); ++t) {
    if (updates_[t]) unwritten_[t] = context_.layout->tensors()[t].kept.size();
  }
  started_ = true;
  next_resident_ = 0;
  begun_.assign(begun_.size(), false);
  // The works that read ahead go on; those that are still reading join when they are done.
  if (Planted(context_, PlantedBug::kDroppedEvent) && !staged_.empty()) staged_.pop_back();
  while (!staged_.empty()) {
    ChunkWork* const work = staged_.front();
    staged_.pop_front();
    OnRead(work, absl::OkStatus());
  }
  Pump();
}

bool Updater::MayBegin() const {
  return !failed_ && (context_.overlap || (busy_ == 0 && closing_ == 0));
}

void Updater::Pump() {
  PumpResident();
  PumpReads();
}

Updater::ChunkWork* Updater::Take(RingQueue<ChunkWork*>* idle) {
  ChunkWork* work = idle->front();
  idle->pop_front();
  ++busy_;
  work->status = absl::OkStatus();
  return work;
}

void Updater::PumpResident() {
  while (started_ && next_resident_ < resident_.size() && !idle_resident_.empty() && MayBegin()) {
    const ChunkIndex chunk = resident_[next_resident_++];
    if (!Active(chunk)) continue;
    ChunkWork* work = Take(&idle_resident_);
    work->chunk = chunk;
    work->states = context_.memory->state_home[chunk.value()];
    LoadGrads(work);
  }
}

BlockIndex Updater::BlockToRead(ChunkIndex chunk) const {
  const auto& blocks = context_.memory->blocks.states;
  const size_t neighbour = chunk.value() ^ 1;
  if (Planted(context_, PlantedBug::kSwappedBlocks) && neighbour < blocks.size() &&
      blocks[neighbour] &&
      context_.layout->chunks()[neighbour].capacity == context_.layout->chunk(chunk).capacity) {
    return *blocks[neighbour];
  }
  return *blocks[chunk.value()];
}

void Updater::PumpReads() {
  while ((started_ || read_ahead_) && !idle_streaming_.empty() && MayBegin()) {
    const std::optional<ReadOrder::Turn> turn = streaming_.Next();
    if (!turn) return;
    const ChunkIndex chunk = turn->chunk;
    // One that was read ahead of a step that left it alone may still be on its way, or have arrived
    // before its turn.
    const bool needed = started_ ? Active(chunk) && !begun_[chunk.value()]
                                 : context_.store->was_written(BlockToRead(chunk));
    if (on_its_way_[chunk.value()] || !needed) {
      streaming_.Pass(*turn);
      continue;
    }
    const MemoryView buffer = context_.memory->state_buffers.TryTake();
    if (buffer.empty()) return;
    streaming_.Pass(*turn);
    streaming_.Begun(turn->drive);
    on_its_way_[chunk.value()] = true;
    ChunkWork* work = Take(&idle_streaming_);
    work->drive = turn->drive;
    work->chunk = chunk;
    work->state_buffer = buffer;
    work->states = buffer.data();
    context_.store->StartRead(&work->read, BlockToRead(chunk), buffer, IoPriority::kNormal);
  }
}

}  // namespace sluice
