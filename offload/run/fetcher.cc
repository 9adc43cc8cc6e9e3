#include "offload/run/fetcher.h"

#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

// The fetch of one unit, and its only operation if the home is pinned memory.
struct Fetcher::UnitFetch final : Event {
  void Handle() override {
    status = copy.status;
    owner->End(this);
  }

  Fetcher* owner = nullptr;
  UnitIndex unit;
  std::byte* to = nullptr;
  uint32_t next_chunk = 0;  // of the model
  uint32_t last_chunk = 0;
  uint32_t chunks_left = 0;  // not yet in HBM
  absl::Status status;
  TimePoint begin{0};
  DeviceOp copy;
};

// One chunk on its way from NVMe.
class Fetcher::Piece final : public BufferPool::Waiter,
                             public BlockTransfer,
                             public Task,
                             public Event {
 public:
  explicit Piece(Fetcher* owner) : copied(this), owner_(owner) {}

  void Start(UnitFetch* unit_fetch, ChunkIndex index) {
    fetch = unit_fetch;
    chunk = index;
    owner_->context_.memory->param_buffers.Take(this);
  }
  void OnBuffer(MemoryView view) override {
    buffer = view;
    const Context& c = owner_->context_;
    c.store->StartRead(this, *c.memory->blocks.params[chunk.value()], buffer, IoPriority::kUrgent);
  }
  void OnDone() override {
    if (!status().ok()) return owner_->EndPiece(this, status());
    owner_->context_.executor->Submit(this);
  }
  void Run() override {
    verified = BlockStore::Verify(*this);
    owner_->context_.inbox->Post(this);
  }
  Nanos cost() const override { return Nanos(static_cast<int64_t>(data().size()) / 20 + 200); }
  void Handle() override {
    if (!verified.ok()) return owner_->EndPiece(this, verified);
    const Context& c = owner_->context_;
    const ChunkLayout& layout = c.layout->chunk(chunk);
    const int64_t size = layout.types.param.size();
    copy.stream = StreamKind::kHostToDevice;
    copy.from = buffer.first(static_cast<size_t>(layout.elements * size));
    copy.to = fetch->to + layout.offset * size;
    copy.inbox = c.inbox;
    copy.event = &copied;
    c.device->Enqueue(&copy);
  }

  struct Copied final : Event {
    explicit Copied(Piece* piece) : piece(piece) {}
    void Handle() override { piece->owner_->EndPiece(piece, piece->copy.status); }
    Piece* const piece;
  };

  UnitFetch* fetch = nullptr;
  ChunkIndex chunk;
  MemoryView buffer;
  absl::Status verified;
  DeviceOp copy;
  Copied copied;

 private:
  Fetcher* const owner_;
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

void Fetcher::Fetch(UnitIndex unit, std::byte* to) {
  UnitFetch* fetch = fetches_[unit.value()].get();
  SLUICE_CHECK(fetch->to == nullptr);
  fetch->to = to;
  fetch->status = absl::OkStatus();
  fetch->begin = context_.clock->Now();
  ++active_;
  const UnitLayout& layout = context_.layout->unit(unit);
  const int64_t bytes = layout.param_bytes().value();
  fetches_count_->Add();
  fetched_bytes_->Add(bytes);
  if (context_.placement->param_home[unit.value()] == Tier::kNvme) {
    fetch->next_chunk = layout.first_chunk;
    fetch->last_chunk = layout.first_chunk + layout.chunk_count;
    fetch->chunks_left = layout.chunk_count;
    hungry_.push_back(fetch);
    return NextPieces();
  }
  fetch->copy.stream = StreamKind::kHostToDevice;
  fetch->copy.from = {context_.memory->param_home[unit.value()], static_cast<size_t>(bytes)};
  fetch->copy.to = to;
  fetch->copy.inbox = context_.inbox;
  fetch->copy.event = fetch;
  context_.device->Enqueue(&fetch->copy);
}

void Fetcher::NextPieces() {
  while (!hungry_.empty() && !free_pieces_.empty()) {
    UnitFetch* fetch = hungry_.front();
    Piece* piece = free_pieces_.back();
    free_pieces_.pop_back();
    const ChunkIndex chunk(fetch->next_chunk++);
    if (fetch->next_chunk == fetch->last_chunk) hungry_.erase(hungry_.begin());
    piece->Start(fetch, chunk);
  }
}

void Fetcher::EndPiece(Piece* piece, const absl::Status& status) {
  UnitFetch* fetch = piece->fetch;
  if (fetch->status.ok()) fetch->status = status;
  context_.memory->param_buffers.Give(std::exchange(piece->buffer, {}));
  free_pieces_.push_back(piece);
  const bool last = --fetch->chunks_left == 0;
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
