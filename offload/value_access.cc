#include "offload/value_access.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "optim/convert.h"

namespace sluice {

// The chunk under way: [read] -> work on a worker -> [write states] and [store parameters] -> next.
class ValueAccess::ChunkStep final : public Task, public Event {
 public:
  explicit ChunkStep(ValueAccess* owner)
      : read_(this, &ChunkStep::OnRead),
        write_(this, &ChunkStep::OnStored),
        param_write_(this, &ChunkStep::OnStored),
        download_(this, &ChunkStep::OnRead),
        upload_(this, &ChunkStep::OnStored),
        param_upload_(this, &ChunkStep::OnStored),
        owner_(owner),
        context_(owner->context_) {}

  void Start(ChunkIndex chunk) {
    chunk_ = chunk;
    status_ = absl::OkStatus();
    was_read_ = false;
    if (owner_->request_.field == Field::kGrad) return StartGrad();
    if (layout().keep == Keep::kParam) return StartFrozen();
    states_ = context_.memory->state_home[chunk.value()];
    if (home() == Tier::kPinned) return Prepare();
    const std::byte* const in_hbm = std::exchange(states_, TakeBuffer());
    if (!owner_->written_[chunk.value()]) {
      std::memset(buffer_.data(), 0, buffer_.size());
      return Prepare();
    }
    if (home() == Tier::kHbm) return download_.Start({in_hbm, state_size()}, buffer_.data());
    was_read_ = true;
    context_.store->StartRead(&read_, *state_block(), buffer_, IoPriority::kUrgent);
  }

  void Run() override {
    if (was_read_) status_ = BlockStore::Verify(read_);
    if (status_.ok()) {
      layout().keep == Keep::kParam ? ApplyFrozen(ThisRun()) : Apply(ThisRun());
      if (owner_->request_.write) RenewParams();
    }
    context_.inbox->Post(this);
  }

  void Handle() override {  // the worker is done
    if (!owner_->request_.write) return End();
    if (!status_.ok()) {
      if (to_drive()) context_.store->Cancel(&write_);
      if (param_block()) context_.store->Cancel(&param_write_);
      return End();
    }
    stores_left_ = 1;
    if (to_drive()) {
      ++stores_left_;
      context_.store->StartWrite(&write_, IoPriority::kUrgent);
    } else if (!buffer_.empty()) {
      ++stores_left_;
      upload_.Start(buffer_.first(state_size()), context_.memory->state_home[chunk_.value()]);
    }
    if (param_block()) {
      ++stores_left_;
      context_.store->StartWrite(&param_write_, IoPriority::kUrgent);
    } else if (!param_buffer_.empty()) {
      ++stores_left_;
      const auto begin = static_cast<size_t>(ThisRun().chunk_offset * param_size());
      const auto size = static_cast<size_t>(ThisRun().elements * param_size());
      param_upload_.Start(param_buffer_.subspan(begin, size), ParamHome() + begin);
    }
    OnStored(absl::OkStatus());
  }

 private:
  struct Transfer final : BlockTransfer {
    using Next = void (ChunkStep::*)(const absl::Status&);
    Transfer(ChunkStep* step, Next next) : step(step), next(next) {}
    void OnDone() override { (step->*next)(status()); }
    ChunkStep* const step;
    const Next next;
  };
  // A copy between a buffer and HBM.
  struct Copy final : Event {
    using Next = void (ChunkStep::*)(const absl::Status&);
    Copy(ChunkStep* step, Next next) : step(step), next(next) {}
    void Start(ConstMemoryView from, std::byte* to) {
      op.stream =
          next == &ChunkStep::OnRead ? StreamKind::kDeviceToHost : StreamKind::kHostToDevice;
      op.from = from;
      op.to = to;
      op.inbox = step->context_.inbox;
      op.event = this;
      step->context_.device->Enqueue(&op);
    }
    void Handle() override { (step->*next)(op.status); }
    ChunkStep* const step;
    const Next next;
    DeviceOp op;
  };

  const ChunkLayout& layout() const { return context_.layout->chunk(chunk_); }
  Tier home() const { return context_.placement->state_home[chunk_.value()]; }
  bool to_drive() const { return !buffer_.empty() && home() == Tier::kNvme; }
  size_t state_size() const { return layout().state_bytes().size(); }
  const std::optional<BlockIndex>& state_block() const {
    return context_.memory->blocks.states[chunk_.value()];
  }
  Tier param_tier() const { return context_.placement->param_home[layout().unit.value()]; }
  // The chunk's parameters, unless they live on NVMe.
  std::byte* ParamHome() const {
    return context_.memory->param_home[layout().unit.value()] + layout().offset * param_size();
  }
  // The part of the chunk that the request is about.
  const ChunkRun& ThisRun() const {
    for (const ChunkRun& run : context_.layout->runs(layout())) {
      if (run.tensor == owner_->request_.tensor) return run;
    }
    SLUICE_CHECK_MSG(false, "a chunk without the tensor asked for");
    std::abort();
  }
  int64_t param_size() const { return SizeOf(context_.types.param_type); }
  const std::optional<BlockIndex>& param_block() const {
    return context_.memory->blocks.params[chunk_.value()];
  }

  void OnRead(const absl::Status& status) {
    status_ = status;
    status.ok() ? Prepare() : End();
  }

  std::byte* TakeBuffer() {
    buffer_ = context_.memory->state_buffers.TryTake();
    SLUICE_CHECK_MSG(!buffer_.empty(), "values are accessed while chunks are on their way");
    return buffer_.data();
  }

  void StartGrad() {
    const int64_t size = SizeOf(context_.types.grad_type);
    grads_ = context_.memory->grads[layout().unit.value()] + layout().offset * size;
    if (context_.placement->grad_home == Tier::kPinned) return Prepare();
    const std::byte* const in_hbm = std::exchange(grads_, TakeBuffer());
    download_.Start({in_hbm, static_cast<size_t>(layout().elements * size)}, buffer_.data());
  }

  // A frozen chunk is its parameters: where they lie, or in a buffer.
  void StartFrozen() {
    if (param_tier() == Tier::kPinned) return Prepare();
    TakeParamBuffer();
    if (param_tier() == Tier::kHbm) {
      if (owner_->request_.write) return Prepare();
      return download_.Start({ParamHome(), static_cast<size_t>(layout().elements * param_size())},
                             param_buffer_.data());
    }
    if (!owner_->written_[chunk_.value()]) {
      std::memset(param_buffer_.data(), 0, param_buffer_.size());
      return Prepare();
    }
    was_read_ = true;
    context_.store->StartRead(&read_, *param_block(), param_buffer_, IoPriority::kUrgent);
  }

  void TakeParamBuffer() {
    param_buffer_ = context_.memory->param_buffers.TryTake();
    SLUICE_CHECK_MSG(!param_buffer_.empty(),
                     "values are accessed while parameters are on their way");
  }

  void Prepare() {
    if (owner_->request_.write) {
      if (to_drive()) context_.store->PrepareWrite(&write_, *state_block(), buffer_);
      if (layout().keep == Keep::kAll && param_tier() != Tier::kPinned) TakeParamBuffer();
      if (param_block()) context_.store->PrepareWrite(&param_write_, *param_block(), param_buffer_);
    }
    context_.executor->Submit(this);
  }

  void ApplyFrozen(const ChunkRun& run) {
    const ValueRequest& request = owner_->request_;
    std::byte* const params = param_tier() == Tier::kPinned ? ParamHome() : param_buffer_.data();
    std::byte* const ours = params + run.chunk_offset * param_size();
    std::byte* const theirs = request.data + run.tensor_offset * SizeOf(request.type);
    const auto n = static_cast<size_t>(run.elements);
    if (request.write) {
      Convert(theirs, request.type, ours, context_.types.param_type, n);
    } else {
      Convert(ours, context_.types.param_type, theirs, request.type, n);
    }
  }

  void Apply(const ChunkRun& run) {
    const ValueRequest& request = owner_->request_;
    std::byte* const theirs = request.data + run.tensor_offset * SizeOf(request.type);
    const auto n = static_cast<size_t>(run.elements);
    if (request.field == Field::kGrad) {
      const FloatType type = context_.types.grad_type;
      return Convert(grads_ + run.chunk_offset * SizeOf(type), type, theirs, request.type, n);
    }
    const StateSpans all = SplitStates(layout(), states_);
    const std::span<float> field = request.field == Field::kExpAvg     ? all.exp_avg
                                   : request.field == Field::kExpAvgSq ? all.exp_avg_sq
                                                                       : all.master;
    float* const values = field.data() + run.chunk_offset;
    if (request.field == Field::kParam) {
      RoundedToParams(values, n, theirs);
    } else if (request.write) {
      Convert(theirs, request.type, values, FloatType::kF32, n);
    } else {
      Convert(values, FloatType::kF32, theirs, request.type, n);
    }
  }

  // The compute copies of `n` masters, in the type asked for.
  void RoundedToParams(const float* masters, size_t n, std::byte* out) const {
    const FloatType type = owner_->request_.type;
    const auto cell = static_cast<size_t>(kCellElements);
    std::array<std::byte, kCellElements * sizeof(float)> rounded;
    for (size_t at = 0; at < n; at += cell) {
      const size_t count = std::min(cell, n - at);
      const FloatType param_type = context_.types.param_type;
      Convert(masters + at, FloatType::kF32, rounded.data(), param_type, count);
      Convert(rounded.data(), param_type, out + at * static_cast<size_t>(SizeOf(type)), type,
              count);
    }
  }

  // Writes the parameter copies of the whole chunk and seals what goes to NVMe.
  void RenewParams() {
    if (layout().keep == Keep::kAll) {
      Convert(SplitStates(layout(), states_).master.data(), FloatType::kF32,
              param_buffer_.empty() ? ParamHome() : param_buffer_.data(), context_.types.param_type,
              static_cast<size_t>(layout().elements));
    }
    if (to_drive()) BlockStore::Seal(&write_);
    if (param_block()) BlockStore::Seal(&param_write_);
  }

  void OnStored(const absl::Status& status) {
    if (status_.ok()) status_ = status;
    if (--stores_left_ == 0) {
      if (status_.ok()) owner_->written_[chunk_.value()] = true;
      End();
    }
  }

  void End() {
    if (!buffer_.empty()) context_.memory->state_buffers.Give(std::exchange(buffer_, {}));
    if (!param_buffer_.empty())
      context_.memory->param_buffers.Give(std::exchange(param_buffer_, {}));
    status_.ok() ? owner_->NextChunk() : owner_->End(status_);
  }

  Transfer read_;
  Transfer write_;
  Transfer param_write_;
  Copy download_;
  Copy upload_;
  Copy param_upload_;
  ValueAccess* const owner_;
  const Context& context_;
  ChunkIndex chunk_;
  std::byte* states_ = nullptr;
  std::byte* grads_ = nullptr;  // of the chunk, if they are asked for
  MemoryView buffer_;
  MemoryView param_buffer_;
  bool was_read_ = false;
  int stores_left_ = 0;
  absl::Status status_;
};

ValueAccess::ValueAccess(const Context& context)
    : context_(context),
      step_(std::make_unique<ChunkStep>(this)),
      written_(context.layout->chunks().size(), false) {}

ValueAccess::~ValueAccess() = default;

void ValueAccess::Start(ValueRequest request) {
  SLUICE_CHECK(!busy_);
  busy_ = true;
  request_ = std::move(request);
  const UnitLayout& unit = context_.layout->unit(context_.layout->tensor(request_.tensor).unit);
  next_chunk_ = unit.first_chunk;
  last_chunk_ = unit.first_chunk + unit.chunk_count;
  NextChunk();
}

void ValueAccess::NextChunk() {
  while (next_chunk_ < last_chunk_) {
    const ChunkIndex chunk(next_chunk_++);
    for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(chunk))) {
      if (run.tensor == request_.tensor) return step_->Start(chunk);
    }
  }
  End(absl::OkStatus());
}

void ValueAccess::End(const absl::Status& status) {
  busy_ = false;
  const absl::Status named =
      status.ok()
          ? status
          : Annotate(status, fmt::format("{} tensor '{}'", request_.write ? "writing" : "reading",
                                         context_.layout->tensor(request_.tensor).name));
  std::exchange(request_.done, nullptr)(named);
}

}  // namespace sluice
