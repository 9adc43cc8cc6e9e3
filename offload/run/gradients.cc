#include "offload/run/gradients.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "optim/on_stream.h"

namespace sluice {

namespace {
constexpr int64_t kCellsPerSum = 256;  // a task's worth: a million elements
}  // namespace

// One gradient on its way in. The first of a window is copied whole; later ones are added on a
// worker or by the device: where they lie, if the host can read them, else piece by piece as they
// pass through a buffer.
class Gradients::PushOp final : public Event,
                                public Task,
                                public DeviceWork,
                                public BufferPool::Waiter {
 public:
  explicit PushOp(Gradients* owner) : added(this), owner_(owner) {}

  void Handle() override { owner_->OnCopied(this); }  // of the device's copy
  void OnBuffer(MemoryView view) override {
    buffer = view;
    owner_->CopyPiece(this);
  }
  void Run() override {
    Launch(nullptr);
    owner_->context_.inbox->Post(&added);
  }
  void Launch(void* stream) override {
    const FloatType type = owner_->TypeOf(tensor);
    const std::byte* const from = buffer.empty() ? data.data() : buffer.data();
    AccumulateOn(stream, owner_->Home(tensor) + offset, from, type,
                 piece / static_cast<size_t>(SizeOf(type)));
  }
  Nanos cost() const override { return Nanos(static_cast<int64_t>(piece) / 8 + 200); }

  struct Added final : Event {
    explicit Added(PushOp* push) : push(push) {}
    void Handle() override { push->owner_->OnAdded(push); }
    PushOp* const push;
  };

  TensorIndex tensor;
  ConstMemoryView data;
  const Fence* fence = nullptr;
  Done done;
  bool adding = false;
  size_t offset = 0;  // of the piece, in bytes
  size_t piece = 0;
  MemoryView buffer;
  DeviceOp copy;
  DeviceOp addition;  // if the device adds
  Added added;

 private:
  Gradients* const owner_;
};

// The sums of squares of up to kCellsPerSum cells of one tensor.
class Gradients::SumTask final : public Task, public DeviceWork, public Event {
 public:
  SumTask(Gradients* owner, TensorIndex tensor, int64_t first, int64_t last)
      : owner_(owner), tensor_(tensor), first_(first), last_(last) {}

  void Start() {
    const Context& c = owner_->context_;
    if (!owner_->in_hbm()) return c.executor->Submit(this);
    op_.stream = StreamKind::kCompute;
    op_.work = this;
    op_.from = {c.memory->sums_hbm + SumsOffset(), SumsBytes()};
    op_.to = c.memory->sums + SumsOffset();
    op_.inbox = c.inbox;
    op_.event = this;
    c.device->Enqueue(&op_);
  }
  void Run() override {
    const Context& c = owner_->context_;
    op_.started = c.clock->Now();
    Sum(nullptr, &owner_->cells_[static_cast<size_t>(FirstCell())]);
    op_.finished = c.clock->Now();
    c.inbox->Post(this);
  }
  void Launch(void* stream) override {
    Sum(stream, reinterpret_cast<double*>(owner_->context_.memory->sums_hbm + SumsOffset()));
  }
  Nanos cost() const override { return Nanos((last_ - first_) * kCellElements / 4 + 200); }
  void Handle() override {
    const Context& c = owner_->context_;
    c.trace->Record(owner_->sum_track_, "norm", tensor_.value(), op_.started, op_.finished);
    if (!op_.status.ok()) {
      c.fail(Annotate(op_.status, fmt::format("the norm of the gradient of tensor '{}'",
                                              c.layout->tensor(tensor_).name)));
    }
    owner_->OnSummed(tensor_);
  }

 private:
  int64_t FirstCell() const { return owner_->context_.layout->tensor(tensor_).first_cell + first_; }
  size_t SumsOffset() const { return static_cast<size_t>(FirstCell()) * sizeof(double); }
  size_t SumsBytes() const { return static_cast<size_t>(last_ - first_) * sizeof(double); }

  void Sum(void* stream, double* sums) {
    const Context& c = owner_->context_;
    const FloatType type = owner_->TypeOf(tensor_);
    const int64_t begin = first_ * kCellElements;
    const int64_t end = std::min(last_ * kCellElements, c.layout->tensor(tensor_).elements);
    CellSquareSumsOn(stream, owner_->Where(tensor_) + begin * SizeOf(type), type,
                     static_cast<size_t>(end - begin), sums);
  }

  Gradients* const owner_;
  const TensorIndex tensor_;
  const int64_t first_;
  const int64_t last_;
  DeviceOp op_;  // its times also where a worker sums
};

Gradients::Gradients(const Context& context)
    : context_(context), tensors_(context.layout->tensors().size()) {
  const auto cell_count = static_cast<size_t>(context.layout->cell_count());
  if (!in_hbm()) own_cells_.resize(cell_count);
  cells_ = in_hbm() ? std::span(reinterpret_cast<double*>(context.memory->sums), cell_count)
                    : std::span(own_cells_);
  std::fill(cells_.begin(), cells_.end(), 0.0);
  copy_track_ = context.trace->AddTrack("gradients to host");
  sum_track_ = context.trace->AddTrack("gradient norm");
  for (uint32_t t = 0; t < tensors_.size(); ++t) {
    const int64_t cells = CellCount(context.layout->tensor(TensorIndex(t)).elements);
    for (int64_t first = 0; first < cells; first += kCellsPerSum) {
      tensors_[t].sums.push_back(std::make_unique<SumTask>(this, TensorIndex(t), first,
                                                           std::min(cells, first + kCellsPerSum)));
    }
    pushes_.push_back(std::make_unique<PushOp>(this));
    free_pushes_.push_back(pushes_.back().get());
  }
}

Gradients::~Gradients() = default;

std::byte* Gradients::Home(TensorIndex tensor) const {
  return context_.memory->GradsOf(context_.layout->tensor(tensor));
}

const std::byte* Gradients::Where(TensorIndex tensor) const {
  const std::byte* const lent = tensors_[tensor.value()].lent;
  return lent != nullptr ? lent : Home(tensor);
}

absl::Status Gradients::CheckTakes(TensorIndex tensor) const {
  const TensorLayout& t = context_.layout->tensor(tensor);
  if (t.keep != Keep::kParam) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("tensor '{}' is frozen: it takes no gradient", t.name));
}

absl::Status Gradients::CheckGiven(const GivenGradient& gradient) const {
  SLUICE_RETURN_IF_ERROR(CheckTakes(gradient.tensor));
  const TensorLayout& t = context_.layout->tensor(gradient.tensor);
  const Given before = tensors_[gradient.tensor.value()].given;
  if (before == Given::kLent) {
    return absl::FailedPreconditionError(fmt::format(
        "the gradient of tensor '{}' is lent: nothing can be added to it before the step", t.name));
  }
  if (!gradient.lent) return absl::OkStatus();
  if (t.keep != Keep::kStates) {
    return absl::FailedPreconditionError(fmt::format(
        "the parameter of tensor '{}' is on the tiers, so its gradient can't be lent: hand it over",
        t.name));
  }
  if (before == Given::kNothing) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("tensor '{}' has a gradient: another can't be lent", t.name));
}

void Gradients::Expect(const GivenGradient& gradient) {
  tensors_[gradient.tensor.value()].given = gradient.lent ? Given::kLent : Given::kCopied;
}

BufferPool* Gradients::buffers() const {
  return in_hbm() ? &context_.memory->grad_buffers : &context_.memory->param_buffers;
}

void Gradients::Push(TensorIndex tensor, ConstMemoryView data, const Fence* fence, Done done) {
  if (free_pushes_.empty()) {
    pushes_.push_back(std::make_unique<PushOp>(this));
    free_pushes_.push_back(pushes_.back().get());
  }
  PushOp* push = free_pushes_.back();
  free_pushes_.pop_back();
  push->tensor = tensor;
  push->data = data;
  push->fence = fence;
  push->done = std::move(done);
  push->offset = 0;
  ++active_;
  Tensor& t = tensors_[tensor.value()];
  t.queue.push_back(push);
  if (t.queue.size() == 1 && t.sums_left == 0) Begin(push);
}

void Gradients::Lend(TensorIndex tensor, ConstMemoryView data) {
  Tensor& t = tensors_[tensor.value()];
  t.lent = data.data();
  t.present = true;
  t.summed = false;
  if (boundary_) StartSums(tensor);
}

void Gradients::Begin(PushOp* push) {
  push->adding = tensors_[push->tensor.value()].present;
  if (!push->adding) return CopyPiece(push);
  if (in_hbm() || !context_.placement->hbm_in_place || !push->fence->Complete())
    return buffers()->Take(push);
  push->piece = push->data.size();
  context_.executor->Submit(push);
}

void Gradients::CopyPiece(PushOp* push) {
  const size_t left = push->data.size() - push->offset;
  push->piece = push->adding ? std::min(left, push->buffer.size()) : left;
  push->copy.stream = StreamKind::kDeviceToHost;
  push->copy.after = push->fence;
  push->copy.from = push->data.subspan(push->offset, push->piece);
  push->copy.to = push->adding ? push->buffer.data() : Home(push->tensor);
  push->copy.inbox = context_.inbox;
  push->copy.event = push;
  context_.device->Enqueue(&push->copy);
}

void Gradients::OnCopied(PushOp* push) {
  context_.trace->Record(copy_track_, "gradient", push->tensor.value(), push->copy.started,
                         push->copy.finished);
  if (!push->copy.status.ok()) {
    return End(
        push, Annotate(push->copy.status, fmt::format("taking the gradient of tensor '{}'",
                                                      context_.layout->tensor(push->tensor).name)));
  }
  if (!push->adding) return End(push, absl::OkStatus());
  if (!in_hbm()) return context_.executor->Submit(push);
  push->addition.stream = StreamKind::kCompute;
  push->addition.work = push;
  push->addition.inbox = context_.inbox;
  push->addition.event = &push->added;
  context_.device->Enqueue(&push->addition);
}

void Gradients::OnAdded(PushOp* push) {
  if (!push->addition.status.ok()) {
    return End(push, Annotate(push->addition.status,
                              fmt::format("adding to the gradient of tensor '{}'",
                                          context_.layout->tensor(push->tensor).name)));
  }
  push->offset += push->piece;
  if (push->offset < push->data.size()) return CopyPiece(push);
  End(push, absl::OkStatus());
}

void Gradients::End(PushOp* push, const absl::Status& status) {
  if (!push->buffer.empty()) buffers()->Give(std::exchange(push->buffer, {}));
  Tensor& t = tensors_[push->tensor.value()];
  const TensorIndex tensor = push->tensor;
  t.queue.pop_front();
  if (status.ok()) {
    t.present = true;
    t.summed = false;
  } else {
    context_.fail(status);
  }
  Done done = std::exchange(push->done, nullptr);
  free_pushes_.push_back(push);
  --active_;
  if (!t.queue.empty()) {
    Begin(t.queue.front());
  } else if (boundary_ && t.present) {
    StartSums(tensor);
  }
  done(status);
  CheckFinished();
}

void Gradients::StartSums(TensorIndex tensor) {
  Tensor& t = tensors_[tensor.value()];
  t.sums_left = static_cast<int>(t.sums.size());
  active_ += t.sums_left;
  if (t.lent != nullptr) lent_sums_ += t.sums_left;
  for (const auto& sum : t.sums) sum->Start();
}

void Gradients::OnSummed(TensorIndex tensor) {
  Tensor& t = tensors_[tensor.value()];
  --active_;
  if (t.lent != nullptr) --lent_sums_;
  if (--t.sums_left > 0) return;
  t.summed = true;
  if (!t.queue.empty()) Begin(t.queue.front());
  CheckFinished();
}

void Gradients::Finish(std::function<void()> done) {
  SLUICE_CHECK(!finish_);
  finish_ = std::move(done);
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& t = tensors_[i];
    if (t.present && !t.summed && t.sums_left == 0 && t.queue.empty()) StartSums(TensorIndex(i));
  }
  CheckFinished();
}

void Gradients::CheckFinished() {
  if (!finish_ || active_ > 0) return;
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i].present && !tensors_[i].summed) return StartSums(TensorIndex(i));
  }
  std::exchange(finish_, nullptr)();
}

void Gradients::Replaced(TensorIndex tensor) {
  SLUICE_CHECK(active_ == 0);
  Tensor& t = tensors_[tensor.value()];
  t.given = Given::kCopied;
  t.present = true;
  t.summed = false;  // by the step: more may be written before
}

void Gradients::Forget(Tensor* tensor) {
  tensor->given = Given::kNothing;
  tensor->lent = nullptr;
  tensor->present = tensor->summed = false;
}

void Gradients::Clear(TensorIndex tensor) {
  SLUICE_CHECK(active_ == 0);
  Forget(&tensors_[tensor.value()]);
  const TensorLayout& t = context_.layout->tensor(tensor);
  const auto first = cells_.begin() + t.first_cell;
  std::fill(first, first + CellCount(t.elements), 0.0);
}

void Gradients::ClearAll() {
  SLUICE_CHECK(active_ == 0);
  for (Tensor& t : tensors_) Forget(&t);
  std::fill(cells_.begin(), cells_.end(), 0.0);
}

}  // namespace sluice
