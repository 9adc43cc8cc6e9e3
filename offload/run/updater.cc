#include "offload/run/updater.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/chunk_work.h"
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
      chunks_updated_(context.metrics->Get("chunks_updated")),
      elements_updated_(context.metrics->Get("elements_updated")),
      update_ns_(context.metrics->Get("update_compute_ns")) {
  const size_t streaming = context.overlap ? context.memory->state_buffers.count() : 1;
  const size_t resident =
      context.overlap ? 2 * static_cast<size_t>(context.executor->concurrency()) + 2 : 1;
  for (size_t i = 0; i < streaming + resident; ++i) {
    works_.push_back(std::make_unique<ChunkWork>(this));
    works_.back()->streaming = i < streaming;
    (i < streaming ? idle_streaming_ : idle_resident_).push_back(works_.back().get());
  }
  for (uint32_t u = 0; u < context.layout->units().size(); ++u) unit_order_.push_back(UnitIndex(u));
  track_ = context.trace->AddTrack(context.update->rule().name());
  Order();
}

Updater::~Updater() = default;

void Updater::SetOrder(const std::vector<UnitIndex>& order) {
  std::vector<bool> named(unit_order_.size(), false);
  std::vector<UnitIndex> next;
  for (const std::vector<UnitIndex>& list : {order, std::vector<UnitIndex>(unit_order_)}) {
    for (UnitIndex unit : list) {
      if (!named[unit.value()]) next.push_back(unit);
      named[unit.value()] = true;
    }
  }
  if (next == unit_order_) return;
  next_order_ = std::move(next);
  if (idle() && staged_.empty()) Order();
}

// Splits the chunks, in the order of their units, by where their states live. Not while a step or
// what was read for one goes through the present order.
void Updater::Order() {
  if (!next_order_.empty()) unit_order_ = std::exchange(next_order_, {});
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
  for (ChunkWork* work : std::exchange(staged_, {})) Retire(work);
}

bool Updater::Active(ChunkIndex chunk) const {
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
    if (updates_[run.tensor.value()]) return true;
  }
  return false;
}

void Updater::Start(std::vector<std::optional<TensorUpdate>> updates) {
  SLUICE_CHECK(!started_ && chunks_left_ == 0);
  updates_ = std::move(updates);
  for (uint32_t c = 0; c < context_.layout->chunks().size(); ++c) {
    if (!Active(ChunkIndex(c))) continue;
    ++chunks_left_;
    ++unit_left_[context_.layout->chunks()[c].unit.value()];
  }
  if (chunks_left_ == 0) return;
  for (uint32_t t = 0; t < updates_.size(); ++t) {
    if (updates_[t]) unwritten_[t] = context_.layout->tensors()[t].elements;
  }
  started_ = true;
  next_resident_ = 0;
  begun_.assign(begun_.size(), false);
  // The works that read ahead go on; those that are still reading join when they are done.
  std::deque<ChunkWork*> staged = std::exchange(staged_, {});
  if (Planted(context_, PlantedBug::kDroppedEvent) && !staged.empty()) staged.pop_back();
  for (ChunkWork* work : staged) OnRead(work, absl::OkStatus());
  Pump();
}

bool Updater::MayBegin() const { return !failed_ && (context_.overlap || busy_ == 0); }

void Updater::Pump() {
  PumpResident();
  PumpReads();
}

Updater::ChunkWork* Updater::Take(std::deque<ChunkWork*>* idle) {
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
    BeginCompute(work);
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

void Updater::FailWork(const ChunkWork* work, const absl::Status& status) {
  const UnitIndex unit = context_.layout->chunk(work->chunk).unit;
  context_.fail(
      Annotate(status, fmt::format("updating unit '{}'", context_.layout->unit(unit).name)));
}

void Updater::OnRead(ChunkWork* work, const absl::Status& status) {
  work->status = status;
  if (!status.ok()) {
    FailWork(work, status);
    return Retire(work);
  }
  if (failed_) return Retire(work);
  if (started_) {
    if (Active(work->chunk)) return BeginCompute(work);
    return Retire(work);
  }
  if (read_ahead_) return staged_.push_back(work);
  Retire(work);
}

// Prepares what the worker will seal, finds a buffer for the parameters if they pass through one,
// and submits.
void Updater::BeginCompute(ChunkWork* work) {
  begun_[work->chunk.value()] = true;
  const BlockMap& blocks = context_.memory->blocks;
  const UnitIndex unit = context_.layout->chunk(work->chunk).unit;
  work->param_on_nvme = blocks.params[work->chunk.value()].has_value();
  work->params_read = false;
  work->on_device = context_.placement->state_home[work->chunk.value()] == Tier::kHbm;
  if (work->streaming) {
    context_.store->PrepareWrite(&work->write, *blocks.states[work->chunk.value()],
                                 work->state_buffer);
  }
  if (work->on_device || context_.placement->param_home[unit.value()] == Tier::kPinned ||
      context_.layout->unit(unit).lent) {
    Submit(work);
  } else {
    context_.memory->param_buffers.Take(work);
  }
}

// The buffer is for the new copies, and first for the present ones if the update reads them.
void Updater::OnParamBuffer(ChunkWork* work) {
  const ChunkLayout& chunk = context_.layout->chunk(work->chunk);
  if (!context_.layout->reads_params(chunk)) return Submit(work);
  work->params_read = work->param_on_nvme;
  if (work->param_on_nvme) {
    context_.store->StartRead(&work->param_read,
                              *context_.memory->blocks.params[work->chunk.value()],
                              work->param_buffer, IoPriority::kNormal);
  } else {
    const auto bytes = static_cast<size_t>(chunk.elements * chunk.types.param.size());
    work->download.Start(context_, StreamKind::kDeviceToHost,
                         {context_.memory->ParamsOf(chunk), bytes}, work->param_buffer.data());
  }
}

void Updater::OnParamsRead(ChunkWork* work, const absl::Status& status) {
  if (status.ok() && !failed_) return Submit(work);
  if (work->streaming) context_.store->Cancel(&work->write);
  if (!status.ok()) FailWork(work, status);
  Retire(work);
}

void Updater::Submit(ChunkWork* work) {
  if (work->param_on_nvme) {
    context_.store->PrepareWrite(&work->param_write,
                                 *context_.memory->blocks.params[work->chunk.value()],
                                 work->param_buffer);
  }
  ++computing_;
  if (!work->on_device) return context_.executor->Submit(work);
  work->device_op.stream = StreamKind::kCompute;
  work->device_op.work = work;
  work->device_op.inbox = context_.inbox;
  work->device_op.event = work;
  context_.device->Enqueue(&work->device_op);
}

void Updater::OnComputed(ChunkWork* work) {
  --computing_;
  if (!work->status.ok()) {
    if (work->streaming) context_.store->Cancel(&work->write);
    if (work->param_on_nvme) context_.store->Cancel(&work->param_write);
    FailWork(work, work->status);
    return Retire(work);
  }
  chunks_updated_->Add();
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(work->chunk))) {
    if (updates_[run.tensor.value()]) elements_updated_->Add(run.elements);
  }
  update_ns_->Add((work->end - work->begin).count());
  context_.trace->Record(track_, "update", work->chunk.value(), work->begin, work->end);
  const bool lost = Planted(context_, PlantedBug::kLostWrite);
  if (work->streaming && lost) context_.store->Cancel(&work->write);
  work->stores_left = work->streaming && !lost ? 2 : 1;
  if (work->streaming && !lost) {
    context_.store->StartWrite(&work->write, IoPriority::kNormal);
    if (Planted(context_, PlantedBug::kReuseBeforeWritten)) {
      context_.memory->state_buffers.Give(std::exchange(work->state_buffer, {}));
    }
  }
  StoreParams(work);
}

void Updater::StoreParams(ChunkWork* work) {
  const ChunkLayout& chunk = context_.layout->chunk(work->chunk);
  if (work->param_on_nvme) {
    context_.store->StartWrite(&work->param_write, IoPriority::kUrgent);
  } else if (!work->param_buffer.empty()) {
    const auto bytes = static_cast<size_t>(chunk.elements * chunk.types.param.size());
    work->upload.Start(context_, StreamKind::kHostToDevice, work->param_buffer.first(bytes),
                       context_.memory->ParamsOf(chunk));
  } else {
    OnParamsStored(work, absl::OkStatus());
  }
}

void Updater::OnParamsStored(ChunkWork* work, const absl::Status& status) {
  if (!status.ok()) {
    FailWork(work, status);
  }
  if (!work->param_buffer.empty()) {
    const MemoryView buffer = std::exchange(work->param_buffer, {});
    context_.memory->param_buffers.Give(buffer);
    if (Planted(context_, PlantedBug::kDoubleRelease)) work->param_buffer = buffer;
  }
  const UnitIndex unit = context_.layout->chunk(work->chunk).unit;
  if (status.ok()) CountWritten(work->chunk);
  if (status.ok() && --unit_left_[unit.value()] == 0) observer_->OnUnitUpdated(unit);
  if (--work->stores_left == 0) Finish(work);
}

void Updater::CountWritten(ChunkIndex chunk) {
  for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
    if (updates_[run.tensor.value()]) unwritten_[run.tensor.value()] -= run.elements;
  }
}

void Updater::OnStatesStored(ChunkWork* work, const absl::Status& status) {
  if (!status.ok()) {
    FailWork(work, status);
  }
  if (--work->stores_left == 0) Finish(work);
}

void Updater::Finish(ChunkWork* work) {
  SLUICE_CHECK(chunks_left_ > 0);
  if (--chunks_left_ == 0) {
    started_ = false;
    streaming_.Restart();
    if (!next_order_.empty()) Order();
  }
  Retire(work);
}

// The work is idle again; whoever can use its place or its buffers goes on.
void Updater::Retire(ChunkWork* work) {
  if (!work->state_buffer.empty())
    context_.memory->state_buffers.Give(std::exchange(work->state_buffer, {}));
  if (!work->param_buffer.empty())
    context_.memory->param_buffers.Give(std::exchange(work->param_buffer, {}));
  if (work->streaming) {
    on_its_way_[work->chunk.value()] = false;
    streaming_.Ended(work->drive);
  }
  (work->streaming ? idle_streaming_ : idle_resident_).push_back(work);
  --busy_;
  Pump();
  if (busy_ == 0 && (chunks_left_ == 0 || failed_)) observer_->OnUpdaterIdle();
}

}  // namespace sluice
