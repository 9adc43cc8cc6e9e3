#include "offload/run/param_piece.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "offload/run/chunk_work.h"
#include "offload/run/planted_bug.h"

namespace sluice {

Updater::ParamPiece::ParamPiece(Updater* owner)
    : owner_(owner), computed_(owner->context_.pieces->longest(), false) {
  waiting_.reserve(owner->context_.pieces->longest());
}

void Updater::ParamPiece::Open(uint32_t number) {
  number_ = number;
  first_ = owner_->context_.pieces->pieces()[number].first;
  count_ = owner_->context_.pieces->pieces()[number].count;
  in_hbm_ = !owner_->context_.memory->blocks.params[first_].has_value();
}

void Updater::ParamPiece::Enter(ChunkWork* work) {
  if (!buffer_.empty() && !storing_ && waiting_.empty()) return Admit(work);
  waiting_.push_back(work);
  // Else it was asked for already, or will be when what is stored has gone.
  if (waiting_.size() == 1 && buffer_.empty()) owner_->context_.memory->param_buffers.Take(this);
}

void Updater::ParamPiece::OnBuffer(MemoryView buffer) {
  buffer_ = buffer;
  if (owner_->failed_) {
    TurnAway(absl::OkStatus());
    return owner_->Settle(this);
  }
  const ModelLayout& layout = *owner_->context_.layout;
  if (!in_hbm_ || !layout.reads_params(layout.chunks()[first_])) return AdmitAll();
  ++under_way_;
  Copy(StreamKind::kDeviceToHost, 0, count_);
}

// Who waits goes without.
void Updater::ParamPiece::TurnAway(const absl::Status& status) {
  for (ChunkWork* work : waiting_) owner_->OnNoParams(work, status);
  waiting_.clear();
}

void Updater::ParamPiece::AdmitAll() {
  for (ChunkWork* work : waiting_) Admit(work);
  waiting_.clear();
}

void Updater::ParamPiece::Admit(ChunkWork* work) {
  const Context& c = owner_->context_;
  const Bytes bytes = c.layout->chunk(work->chunk).param_bytes();
  const Bytes room = in_hbm_ ? bytes : RoundUp(bytes, c.placement->io_alignment);
  ++under_way_;
  work->param_part =
      buffer_.subspan(owner_->context_.pieces->OffsetOf(work->chunk).size(), room.size());
  work->params = work->param_part.data();
  owner_->OnParamPlace(work);
}

void Updater::ParamPiece::Leave(ChunkIndex chunk, bool computed) {
  computed_[chunk.value() - first_] = computed;
  --under_way_;
  owner_->Settle(this);
}

void Updater::ParamPiece::GiveBack() {
  SLUICE_CHECK(KeepsBuffer());
  storing_ = true;
  ++owner_->closing_;
  StoreNext();
}

// The next of the runs that are computed, in one copy: all of the piece, if no chunk of it had to
// go before others came.
void Updater::ParamPiece::StoreNext() {
  const auto end = computed_.begin() + count_;
  if (owner_->failed_) std::fill(computed_.begin(), end, false);
  const auto first = std::find(computed_.begin(), end, true);
  if (first == end) return Close();
  const auto last = std::find(first, end, false);
  Copy(StreamKind::kHostToDevice, static_cast<uint32_t>(first - computed_.begin()),
       static_cast<uint32_t>(last - computed_.begin()));
}

void Updater::ParamPiece::Copy(StreamKind stream, uint32_t first, uint32_t last) {
  const Context& c = owner_->context_;
  const ChunkIndex begin(first_ + first), back(first_ + last - 1);
  const ChunkLayout& chunk = c.layout->chunk(back);
  const size_t at = owner_->context_.pieces->OffsetOf(begin).size();
  const size_t size = owner_->context_.pieces->OffsetOf(back).size() - at +
                      static_cast<size_t>(chunk.elements * chunk.types.param.size());
  std::byte* const here = buffer_.data() + at;
  std::byte* const home = c.memory->ParamsOf(c.layout->chunk(begin));
  const bool to_here = stream == StreamKind::kDeviceToHost;
  copied_first_ = first;
  copied_last_ = last;
  copy_.stream = stream;
  copy_.from = {to_here ? home : here, size};
  copy_.to = to_here ? here : home;
  copy_.inbox = c.inbox;
  copy_.event = this;
  c.device->Enqueue(&copy_);
}

void Updater::ParamPiece::Handle() {
  if (storing_) {
    for (uint32_t i = copied_first_; i < copied_last_; ++i) {
      computed_[i] = false;
      owner_->OnParamsStored(ChunkIndex(first_ + i), copy_.status);
    }
    return StoreNext();
  }
  if (!copy_.status.ok() || owner_->failed_) TurnAway(copy_.status);
  AdmitAll();
  --under_way_;
  owner_->Settle(this);
}

void Updater::ParamPiece::Close() {
  BufferPool& pool = owner_->context_.memory->param_buffers;
  storing_ = false;
  --owner_->closing_;
  const MemoryView buffer = std::exchange(buffer_, {});
  pool.Give(buffer);
  if (Planted(owner_->context_, PlantedBug::kDoubleRelease)) pool.Give(buffer);
  if (waiting_.empty()) {
    owner_->ClosePiece(this, number_);
  } else {
    pool.Take(this);
  }
  owner_->GoOn();
}

void Updater::EnterPiece(ChunkWork* work, uint32_t number) {
  --coming_[number];
  if (piece_at_[number] == nullptr) {
    SLUICE_CHECK(!free_pieces_.empty());
    piece_at_[number] = free_pieces_.back();
    free_pieces_.pop_back();
    ++open_pieces_;
    piece_at_[number]->Open(number);
  }
  work->piece = piece_at_[number];
  work->piece->Enter(work);
}

// Somebody waits for a buffer: one that a piece keeps for chunks to come is given back, unless as
// many as are wanted are about to be.
void Updater::OnWanted() {
  for (const auto& piece : piece_pool_) {
    if (context_.memory->param_buffers.waiting() <= closing_) return;
    if (piece->KeepsBuffer()) piece->GiveBack();
  }
}

// Something of the piece has ended, or the runtime has failed.
void Updater::Settle(ParamPiece* piece) {
  if (!piece->KeepsBuffer()) return;
  const bool wanted = context_.memory->param_buffers.waiting() > closing_;
  if (wanted || failed_ || coming_[piece->number()] == 0) piece->GiveBack();
}

void Updater::ClosePiece(ParamPiece* piece, uint32_t number) {
  piece_at_[number] = nullptr;
  free_pieces_.push_back(piece);
  --open_pieces_;
}

}  // namespace sluice
