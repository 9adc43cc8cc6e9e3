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
    part.spans = {};
  }
  if (!on_device) {
    Begin(Has(Round::kCheck) ? Round::kCheck : Round::kUpdate);
    for (size_t i = 0; i < part_count_; ++i) c.executor->Submit(&parts_[i]);
    return;
  }
  device_op_.stream = StreamKind::kCompute;
  device_op_.work = this;
  device_op_.inbox = c.inbox;
  device_op_.event = this;
  c.device->Enqueue(&device_op_);
}

void Updater::ChunkWork::Begin(Round round) {
  round_ = round;
  parts_left_.store(part_count_, std::memory_order_relaxed);
}

// Whoever ends the last part of a round begins the next, or posts that all has ended: then the work
// may be used again.
void Updater::ChunkWork::RunPart(Part* part) {
  const Context& c = owner_->context_;
  while (true) {
    Part::Span& span = part->spans[static_cast<size_t>(round_)];
    span.begin = c.clock->Now();
    part->status = RunRound(*part);
    span.end = c.clock->Now();
    if (parts_left_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    status = EndRound();
    const std::optional<Round> next = NextRound();
    if (!status.ok() || !next) return c.inbox->Post(this);
    Begin(*next);
    for (size_t i = 0; i < part_count_; ++i) {
      if (&parts_[i] != part) c.executor->Submit(&parts_[i]);
    }
  }
}

absl::Status Updater::ChunkWork::RunRound(const Part& part) {
  switch (round_) {
    case Round::kCheck:
      return Check(part);
    case Round::kUpdate:
      if (SumsOnTheWay()) return UpdateInPieces(part.first, part.last);
      Update(nullptr, part.first, part.last, {});
      return absl::OkStatus();
    case Round::kSeal:
      SealOrPublish(part);
      return absl::OkStatus();
  }
  SLUICE_CHECK(false);
}

// By whoever ends its last part.
absl::Status Updater::ChunkWork::EndRound() {
  for (const Part& part : parts()) SLUICE_RETURN_IF_ERROR(part.status);
  if (round_ == Round::kUpdate && ChecksOnTheWay() && Verifies())
    SLUICE_RETURN_IF_ERROR(BlockStore::VerifyPadding(read));
  if (NextRound()) return absl::OkStatus();
  if (streaming) BlockStore::EndSeal(&write);
  if (param_on_nvme) BlockStore::EndSeal(&param_write);
  return absl::OkStatus();
}

std::optional<Updater::ChunkWork::Round> Updater::ChunkWork::NextRound() const {
  if (round_ == Round::kCheck) return Round::kUpdate;
  if (round_ == Round::kUpdate && Has(Round::kSeal)) return Round::kSeal;
  return std::nullopt;
}

bool Updater::ChunkWork::Has(Round round) const {
  switch (round) {
    case Round::kCheck:
      return Verifies() &&
             ((streaming && !ChecksOnTheWay()) || !grad_buffer.empty() || params_read);
    case Round::kUpdate:
      return true;
    case Round::kSeal:
      return (streaming && !SumsOnTheWay()) || HidesParams() || param_on_nvme;
  }
  SLUICE_CHECK(false);
}

bool Updater::ChunkWork::Verifies() const {
  return !Planted(owner_->context_, PlantedBug::kUnverifiedRead);
}

void Updater::ChunkWork::Handle() {
  if (on_device) {
    status = device_op_.status;
    parts_[0].spans[static_cast<size_t>(Round::kUpdate)] = {device_op_.started,
                                                            device_op_.finished};
  }
  owner_->OnComputed(this);
}

// The update's kernel adds up what of the states it finds and leaves, if the masters are of them.
bool Updater::ChunkWork::SumsOnTheWay() const {
  const Context& c = owner_->context_;
  return streaming && c.update->adds_sums() && !c.layout->masters_are_lent(c.layout->chunk(chunk));
}

// Where the update writes what is lent, it may not begin before all is known to be right.
bool Updater::ChunkWork::ChecksOnTheWay() const {
  return SumsOnTheWay() && !IsLent(owner_->context_.layout->chunk(chunk).keep);
}

// Parameters that others see are made of the masters when these are known to be right.
bool Updater::ChunkWork::HidesParams() const { return ChecksOnTheWay() && piece == nullptr; }

void Updater::ChunkWork::Launch(void* stream) {
  Update(stream, 0, owner_->context_.layout->chunk(chunk).elements, {});
}

// Of a block's pieces, those that are the part's.
PieceRange Updater::ChunkWork::ShareOf(const Part& part, const BlockTransfer& of) const {
  const auto i = static_cast<size_t>(&part - parts_.data());
  const size_t count = of.pieces().count();
  return {.first = static_cast<uint32_t>(count * i / part_count_),
          .last = static_cast<uint32_t>(count * (i + 1) / part_count_)};
}

absl::Status Updater::ChunkWork::Check(const Part& part) const {
  const bool last = &part == &parts_[part_count_ - 1];
  const auto check = [&](const BlockTransfer& of) {
    SLUICE_RETURN_IF_ERROR(BlockStore::VerifyPieces(of, ShareOf(part, of)));
    return last ? BlockStore::VerifyPadding(of) : absl::OkStatus();
  };
  if (streaming && !ChecksOnTheWay()) SLUICE_RETURN_IF_ERROR(check(read));
  if (!grad_buffer.empty()) SLUICE_RETURN_IF_ERROR(check(grad_read));
  if (params_read) SLUICE_RETURN_IF_ERROR(check(param_read));
  return absl::OkStatus();
}

absl::Status Updater::ChunkWork::UpdateInPieces(int64_t first, int64_t last) {
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
    if (ChecksOnTheWay() && Verifies())
      SLUICE_RETURN_IF_ERROR(BlockStore::VerifyPiece(read, p, before));
    BlockStore::SealPiece(&write, p, after);
  }
  return absl::OkStatus();
}

void Updater::ChunkWork::SealOrPublish(const Part& part) {
  if (HidesParams()) PublishParams(part.first, part.last);
  if (streaming && !SumsOnTheWay()) BlockStore::SealPieces(&write, ShareOf(part, write));
  if (param_on_nvme) BlockStore::SealPieces(&param_write, ShareOf(part, param_write));
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

void Updater::ChunkWork::PublishParams(int64_t first, int64_t last) const {
  const Context& c = owner_->context_;
  const ChunkLayout& layout = c.layout->chunk(chunk);
  const FloatType type = layout.types.param.floats();
  std::byte* const params = c.memory->ParamsOf(layout);
  for (const ChunkRun& run : c.layout->runs(layout)) {
    const int64_t begin = std::max(first, run.chunk_offset);
    const int64_t end = std::min(last, run.chunk_offset + run.elements);
    if (begin >= end || !owner_->updates_[run.tensor.value()]) continue;
    c.layout->format()->Read(StatesAt(layout, states, params), kMasterIndex, begin,
                             params + begin * SizeOf(type), type, static_cast<size_t>(end - begin));
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
      c.update->Run(
          stream, update->scalars, all,
          {.at = begin,
           .elements = n,
           .grad = update->lent_grad != nullptr ? update->lent_grad + of_tensor * SizeOf(grad_type)
                                                : grads + begin * SizeOf(grad_type),
           .grad_type = grad_type,
           .param_out = is_master || HidesParams() ? nullptr : out,
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
