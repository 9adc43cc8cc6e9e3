#include "offload/run/fetcher.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

// The fetch of one unit, and its only operations if the home is pinned memory.
struct Fetcher::UnitFetch final : Event {
  // The last operation has ended, and with it, on the same stream, the first.
  void Handle() override {
    status = first_copy.status.ok() ? copy.status : first_copy.status;
    owner->End(this);
  }

  Fetcher* owner = nullptr;
  UnitIndex unit;
  std::byte* to = nullptr;
  bool as_home = false;
  uint32_t next_chunk = 0;  // of the model
  uint32_t last_chunk = 0;
  uint32_t chunks_to_copy = 0;  // of which no copy is enqueued
  uint32_t chunks_left = 0;     // not yet in HBM
  absl::Status status;
  TimePoint begin{0};
  DeviceOp first_copy;  // of a shard that comes to lie in two places
  struct FirstCopied final : Event {
    void Handle() override {}  // the last tells of both
  } first_copied;
  DeviceOp copy;
};

// Neighbouring chunks on their way from NVMe (offload/plan/param_pieces.h): read side by side into
// one buffer, each checked as soon as it is there, and copied at once.
class Fetcher::Piece final : public BufferPool::Waiter, public Event {
 public:
  explicit Piece(Fetcher* owner) : copied(this), owner_(owner) {
    for (uint32_t i = 0; i < owner->context_.pieces->longest(); ++i)
      reads_.push_back(std::make_unique<Read>(this));
  }

  void Start(UnitFetch* unit_fetch, const ParamPieces::Piece& piece) {
    fetch = unit_fetch;
    first_ = piece.first;
    count = piece.count;
    owner_->context_.memory->param_buffers.Take(this);
  }
  void OnBuffer(MemoryView view) override {
    buffer = view;
    const Context& c = owner_->context_;
    left_.store(count, std::memory_order_relaxed);
    for (uint32_t i = 0; i < count; ++i) {
      const ChunkIndex chunk(first_ + i);
      const Bytes room = RoundUp(c.layout->chunk(chunk).param_bytes(), c.placement->io_alignment);
      c.store->StartRead(reads_[i].get(), *c.memory->blocks.params[chunk.value()],
                         buffer.subspan(c.pieces->OffsetOf(chunk).size(), room.size()),
                         IoPriority::kUrgent);
    }
  }
  void Handle() override {
    for (uint32_t i = 0; i < count; ++i) {
      if (!reads_[i]->verified.ok()) return owner_->EndPiece(this, reads_[i]->verified);
    }
    const Context& c = owner_->context_;
    const ChunkLayout& chunk = c.layout->chunks()[first_];
    copy.stream = StreamKind::kFetch;
    copy.from = buffer.first(BytesBefore(count));
    const int64_t at = fetch->as_home ? c.memory->PlaceAtHome(chunk) : chunk.offset;
    copy.to = fetch->to + at * chunk.types.param.size();
    copy.inbox = c.inbox;
    copy.event = &copied;
    c.device->Enqueue(&copy);
    fetch->chunks_to_copy -= count;
    if (fetch->chunks_to_copy == 0) owner_->observer_->OnEnqueued(fetch->unit);
  }

  struct Copied final : Event {
    explicit Copied(Piece* piece) : piece(piece) {}
    void Handle() override { piece->owner_->EndPiece(piece, piece->copy.status); }
    Piece* const piece;
  };

  UnitFetch* fetch = nullptr;
  uint32_t count = 0;  // chunks
  MemoryView buffer;
  DeviceOp copy;
  Copied copied;

 private:
  struct Read final : BlockTransfer, Task {
    explicit Read(Piece* piece) : piece(piece) {}
    void OnDone() override {
      verified = status();
      if (!verified.ok()) return piece->OnArrived();
      piece->owner_->context_.executor->Submit(this);
    }
    void Run() override {
      verified = BlockStore::Verify(*this);
      piece->OnArrived();
    }
    TaskCost cost() const override {
      return {TaskKind::kCheck, static_cast<int64_t>(data().size())};
    }

    Piece* const piece;
    absl::Status verified;
  };

  // A chunk is there, or never will be. On a worker or the control thread; whoever ends the last
  // closes the gaps that transfers left.
  void OnArrived() {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (uint32_t i = 1; i < count; ++i) {
      const ConstMemoryView from = reads_[i]->data();
      std::byte* const to = buffer.data() + BytesBefore(i);
      if (to != from.data()) std::memmove(to, from.data(), from.size());
    }
    owner_->context_.inbox->Post(this);
  }

  // Of the unit, from the piece's beginning to its chunk `i`, or to its end.
  size_t BytesBefore(uint32_t i) const {
    const std::span<const ChunkLayout> chunks =
        owner_->context_.layout->chunks().subspan(first_, count);
    const int64_t end =
        i < count ? chunks[i].offset : chunks.back().offset + chunks.back().elements;
    return static_cast<size_t>((end - chunks[0].offset) * chunks[0].types.param.size());
  }

  Fetcher* const owner_;
  uint32_t first_ = 0;  // chunk
  std::vector<std::unique_ptr<Read>> reads_;
  std::atomic<uint32_t> left_{0};  // chunks
};

Fetcher::Fetcher(const Context& context, Observer* observer)
    : context_(context),
      observer_(observer),
      fetched_bytes_(context.metrics->Get("fetch_bytes")),
      fetches_count_(context.metrics->Get("fetches")) {
  for (uint32_t u = 0; u < context.layout->units().size(); ++u) {
    fetches_.push_back(std::make_unique<UnitFetch>());
    fetches_.back()->owner = this;
    fetches_.back()->unit = UnitIndex(u);
  }
  for (size_t i = 0; i < context.memory->param_buffers.count(); ++i) {
    pieces_.push_back(std::make_unique<Piece>(this));
    free_pieces_.push_back(pieces_.back().get());
  }
  hungry_.reserve(fetches_.size());
  track_ = context.trace->AddTrack("parameters to HBM");
}

Fetcher::~Fetcher() = default;

void Fetcher::Start(UnitIndex unit, std::byte* to, bool as_home) {
  UnitFetch* fetch = fetches_[unit.value()].get();
  SLUICE_CHECK(fetch->to == nullptr);
  fetch->to = to;
  fetch->as_home = as_home;
  fetch->status = absl::OkStatus();
  fetch->begin = context_.clock->Now();
  ++active_;
  const UnitLayout& layout = context_.layout->unit(unit);
  const bool shared = context_.placement->IsShared(unit.value());
  const bool stays = shared && context_.placement->SentFromHome(unit.value());
  const Bytes own = shared ? layout.shard_bytes(context_.layout->sharding().rank) : Bytes(0);
  if (!stays) {
    fetches_count_->Add();
    fetched_bytes_->Add((shared ? own : layout.param_bytes()).value());
  }
  fetch->first_copy = DeviceOp();
  if (context_.placement->param_home[unit.value()] != Tier::kNvme) return Copy(fetch);
  fetch->next_chunk = layout.first_chunk;
  fetch->last_chunk = layout.first_chunk + layout.chunk_count;
  fetch->chunks_to_copy = fetch->chunks_left = layout.chunk_count;
  if (layout.chunk_count == 0) return Copy(fetch);  // this rank has nothing of it
  hungry_.push_back(fetch);
  NextPieces();
}

// From pinned memory; or only waits, where nothing is to be copied.
void Fetcher::Copy(UnitFetch* fetch) {
  const size_t u = fetch->unit.value();
  const UnitLayout& layout = context_.layout->unit(fetch->unit);
  const int64_t size = layout.types.param.size();
  const std::byte* from = context_.memory->param_home[u];
  DeviceOp* op = &fetch->copy;
  *op = DeviceOp();
  const auto add = [&](std::byte* to, int64_t places) {
    if (places == 0) return;
    if (!op->from.empty()) fetch->first_copy = std::exchange(*op, DeviceOp());
    op->from = {from, static_cast<size_t>(places * size)};
    op->to = to;
    from += places * size;
  };
  if (!context_.placement->IsShared(u)) {
    add(fetch->to, layout.elements);
  } else if (context_.placement->param_home[u] == Tier::kPinned &&
             !context_.placement->SentFromHome(u)) {
    const Rank rank = context_.layout->sharding().rank;
    const ElementRange updated = layout.updated.shard(rank), frozen = layout.frozen.shard(rank);
    std::byte* const to = fetch->to;
    add(fetch->as_home ? to : to + updated.begin * size, updated.size());
    add(to + (fetch->as_home ? updated.size() : layout.updated_elements + frozen.begin) * size,
        frozen.size());
  }
  const auto enqueue = [this](DeviceOp* one, Event* event) {
    one->stream = StreamKind::kFetch;
    one->inbox = context_.inbox;
    one->event = event;
    context_.device->Enqueue(one);
  };
  if (!fetch->first_copy.from.empty()) enqueue(&fetch->first_copy, &fetch->first_copied);
  enqueue(op, fetch);
  observer_->OnEnqueued(fetch->unit);
}

void Fetcher::NextPieces() {
  while (!hungry_.empty() && !free_pieces_.empty()) {
    UnitFetch* fetch = hungry_.front();
    Piece* piece = free_pieces_.back();
    free_pieces_.pop_back();
    const uint32_t number = *context_.pieces->PieceOf(ChunkIndex(fetch->next_chunk));
    const ParamPieces::Piece& chunks = context_.pieces->pieces()[number];
    fetch->next_chunk += chunks.count;
    if (fetch->next_chunk == fetch->last_chunk) hungry_.erase(hungry_.begin());
    piece->Start(fetch, chunks);
  }
}

void Fetcher::EndPiece(Piece* piece, const absl::Status& status) {
  UnitFetch* fetch = piece->fetch;
  if (fetch->status.ok()) fetch->status = status;
  context_.memory->param_buffers.Give(std::exchange(piece->buffer, {}));
  free_pieces_.push_back(piece);
  fetch->chunks_left -= piece->count;
  const bool last = fetch->chunks_left == 0;
  NextPieces();
  if (last) End(fetch);
}

void Fetcher::End(UnitFetch* fetch) {
  fetch->to = nullptr;
  --active_;
  context_.trace->Record(track_, "fetch unit", fetch->unit.value(), fetch->begin,
                         context_.clock->Now());
  if (!fetch->status.ok()) {
    fetch->status = Annotate(fetch->status, fmt::format("bringing unit '{}' to HBM",
                                                        context_.layout->unit(fetch->unit).name));
  }
  observer_->OnFetched(fetch->unit, fetch->status);
}

}  // namespace sluice
