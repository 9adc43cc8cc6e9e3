#include "offload/run/gradients.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/gradient_ops.h"

namespace sluice {

namespace {
constexpr int64_t kCellsPerTask = 256;  // a million elements
}  // namespace

Gradients::Gradients(const Context& context)
    : context_(context), tensors_(context.layout->tensors().size()) {
  const auto cell_count = static_cast<size_t>(context.layout->cell_count());
  const bool pinned = context.memory->sums != nullptr;
  if (!pinned) own_cells_.resize(cell_count);
  cells_ = pinned ? std::span(reinterpret_cast<double*>(context.memory->sums), cell_count)
                  : std::span(own_cells_);
  std::fill(cells_.begin(), cells_.end(), 0.0);
  context.metrics->Get("nvme_gradient_write_bytes");  // also where it stays 0
  copy_track_ = context.trace->AddTrack("gradients to host");
  sum_track_ = context.trace->AddTrack("gradient norm");
  AddParts();
  for (uint32_t t = 0; t < tensors_.size(); ++t) {
    const auto add = [&](const Part& part, std::vector<std::unique_ptr<CellTask>>* tasks) {
      const int64_t cells = CellCount(part.elements);
      for (int64_t first = 0; first < cells; first += kCellsPerTask) {
        tasks->push_back(std::make_unique<CellTask>(this, TensorIndex(t), part, first,
                                                    std::min(cells, first + kCellsPerTask)));
      }
    };
    const TensorLayout& tensor = context.layout->tensor(TensorIndex(t));
    std::vector<std::unique_ptr<CellTask>>& tasks = tensors_[t].tasks;
    for (Part& part : tensors_[t].parts) {
      part.first_task = tasks.size();
      add(part, &tasks);
      part.tasks = tasks.size() - part.first_task;
    }
    if (IsLent(tensor.keep))
      add({.begin = 0, .elements = tensor.elements, .home = nullptr, .in_hbm = false},
          &tensors_[t].sums_of_lent);
    pushes_.push_back(std::make_unique<PushOp>(this));
    free_pushes_.push_back(pushes_.back().get());
  }
  if (context.placement->grads_nvme > Bytes(0))
    spill_ = std::make_unique<GradSpill>(context, cells_, [this] { CheckFinished(); });
}

Gradients::~Gradients() = default;

// Neighbouring chunks of a tensor whose gradients lie side by side are one part.
void Gradients::AddParts() {
  const ModelLayout& layout = *context_.layout;
  for (uint32_t c = 0; c < layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = layout.chunks()[c];
    std::byte* const home = context_.memory->grad_home[c];
    if (home == nullptr) continue;
    const int64_t size = SizeOf(chunk.types.grad);
    for (const ChunkRun& run : layout.runs(chunk)) {
      std::vector<Part>& parts = tensors_[run.tensor.value()].parts;
      std::byte* const at = home + run.chunk_offset * size;
      if (!parts.empty() && parts.back().home + parts.back().elements * size == at &&
          parts.back().begin + parts.back().elements == run.tensor_offset) {
        parts.back().elements += run.elements;
      } else {
        parts.push_back({.begin = run.tensor_offset,
                         .elements = run.elements,
                         .home = at,
                         .in_hbm = context_.placement->grad_home[c] == Tier::kHbm});
      }
    }
  }
}

void Gradients::SetBoundary(bool boundary) {
  boundary_ = boundary;
  if (spill_ != nullptr) spill_->SetBoundary(boundary);
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
  if (!IsLent(t.keep)) {
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

BufferPool* Gradients::buffers(const Part& part) const {
  return part.in_hbm ? &context_.memory->add_buffers : &context_.memory->param_buffers;
}

void Gradients::Push(const GivenGradient& gradient, const Fence* fence, Done done) {
  if (free_pushes_.empty()) {
    pushes_.push_back(std::make_unique<PushOp>(this));
    free_pushes_.push_back(pushes_.back().get());
  }
  PushOp* push = free_pushes_.back();
  free_pushes_.pop_back();
  push->tensor = gradient.tensor;
  push->data = gradient.data;
  push->first = gradient.first;
  push->fence = fence;
  push->done = std::move(done);
  ++active_;
  Tensor& t = tensors_[gradient.tensor.value()];
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
  push->status = absl::OkStatus();
  push->next_part = push->offset = push->parts_summed = 0;
  push->ways_left = 1;
  if (spill_ != nullptr && spill_->Holds(push->tensor)) {
    ++push->ways_left;
    push->spilled.tensor = push->tensor;
    push->spilled.data = push->data;
    push->spilled.first = push->first;
    push->spilled.fence = push->fence;
    push->spilled.adding = push->adding;
    spill_->Put(&push->spilled);
  }
  NextPart(push);
}

void Gradients::NextPart(PushOp* push) {
  if (push->next_part == tensors_[push->tensor.value()].parts.size())
    return EndWay(push, absl::OkStatus());
  const Part& part = push->part();
  push->offset = 0;
  if (!part.in_hbm && context_.placement->hbm_in_place && push->fence->Complete())
    return TakePart(push);
  if (push->adding) return buffers(part)->Take(push);
  CopyPiece(push);
}

// Sums are made on the way if this may be the last that is added.
void Gradients::TakePart(PushOp* push) {
  const Part& part = push->part();
  const Tensor& tensor = tensors_[push->tensor.value()];
  const bool sums = boundary_ && tensor.queue.size() == 1;
  push->tasks_left = part.tasks;
  if (sums) ++push->parts_summed;
  for (size_t i = 0; i < part.tasks; ++i)
    tensor.tasks[part.first_task + i]->StartTaking(push, sums);
}

void Gradients::OnTaken(PushOp* push) {
  if (--push->tasks_left == 0) EndPart(push, absl::OkStatus());
}

void Gradients::CopyPiece(PushOp* push) {
  const Part& part = push->part();
  const int64_t size = SizeOf(TypeOf(push->tensor));
  const size_t left = static_cast<size_t>(part.elements * size) - push->offset;
  push->piece = push->adding ? std::min(left, push->buffer.size()) : left;
  push->copy.stream = StreamKind::kDeviceToHost;
  push->copy.from = push->data.subspan(
      static_cast<size_t>((part.begin - push->first) * size) + push->offset, push->piece);
  push->copy.to = push->adding ? push->buffer.data() : part.home;
  push->copy.inbox = context_.inbox;
  push->copy.event = push;
  context_.device->OrderAfter(StreamKind::kDeviceToHost, *push->fence);
  context_.device->Enqueue(&push->copy);
}

void Gradients::OnCopied(PushOp* push) {
  context_.trace->Record(copy_track_, "gradient", push->tensor.value(), push->copy.started,
                         push->copy.finished);
  if (!push->copy.status.ok()) {
    return EndPart(
        push, Annotate(push->copy.status, fmt::format("taking the gradient of tensor '{}'",
                                                      context_.layout->tensor(push->tensor).name)));
  }
  if (!push->adding) return EndPart(push, absl::OkStatus());
  if (!push->part().in_hbm) return context_.executor->Submit(push);
  push->addition.stream = StreamKind::kCompute;
  push->addition.work = push;
  push->addition.inbox = context_.inbox;
  push->addition.event = &push->added;
  context_.device->Enqueue(&push->addition);
}

void Gradients::OnAdded(PushOp* push) {
  if (!push->addition.status.ok()) {
    return EndPart(push, Annotate(push->addition.status,
                                  fmt::format("adding to the gradient of tensor '{}'",
                                              context_.layout->tensor(push->tensor).name)));
  }
  push->offset += push->piece;
  if (push->offset < static_cast<size_t>(push->part().elements * SizeOf(TypeOf(push->tensor))))
    return CopyPiece(push);
  EndPart(push, absl::OkStatus());
}

void Gradients::EndPart(PushOp* push, const absl::Status& status) {
  if (!push->buffer.empty()) buffers(push->part())->Give(std::exchange(push->buffer, {}));
  if (!status.ok()) return EndWay(push, status);
  ++push->next_part;
  NextPart(push);
}

void Gradients::EndWay(PushOp* push, const absl::Status& status) {
  SLUICE_CHECK(push->ways_left > 0);
  if (push->status.ok()) push->status = status;
  if (--push->ways_left == 0) End(push);
}

void Gradients::End(PushOp* push) {
  const absl::Status status = push->status;
  Tensor& t = tensors_[push->tensor.value()];
  const TensorIndex tensor = push->tensor;
  t.queue.pop_front();
  if (status.ok()) {
    t.present = true;
    t.summed = push->parts_summed == t.parts.size();
  } else {
    context_.fail(status);
  }
  Done done = std::exchange(push->done, nullptr);
  free_pushes_.push_back(push);
  --active_;
  if (!t.queue.empty()) {
    Begin(t.queue.front());
  } else if (boundary_ && t.present && !t.summed) {
    StartSums(tensor);
  }
  done(status);
  CheckFinished();
}

void Gradients::StartSums(TensorIndex tensor) {
  Tensor& t = tensors_[tensor.value()];
  const auto& sums = t.lent != nullptr ? t.sums_of_lent : t.tasks;
  t.sums_left = static_cast<int>(sums.size());
  active_ += t.sums_left;
  if (t.lent != nullptr) lent_sums_ += t.sums_left;
  for (const auto& sum : sums) sum->Start();
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
  if (spill_ != nullptr && !spill_->Finish()) return;
  std::exchange(finish_, nullptr)();
}

void Gradients::StoreKept() {
  if (spill_ != nullptr) spill_->StoreKept();
}

void Gradients::Replaced(TensorIndex tensor) {
  SLUICE_CHECK(idle());
  Tensor& t = tensors_[tensor.value()];
  t.given = Given::kCopied;
  t.present = true;
  t.summed = t.parts.empty();  // by the step: more may be written before
  if (spill_ != nullptr) spill_->Replaced(tensor);
}

void Gradients::Forget(Tensor* tensor) {
  tensor->given = Given::kNothing;
  tensor->lent = nullptr;
  tensor->present = tensor->summed = false;
}

void Gradients::Clear(TensorIndex tensor) {
  SLUICE_CHECK(idle());
  Forget(&tensors_[tensor.value()]);
  const TensorLayout& t = context_.layout->tensor(tensor);
  const auto first = cells_.begin() + t.first_cell;
  std::fill(first, first + CellCount(t.elements), 0.0);
  if (spill_ != nullptr) spill_->Clear(tensor);
}

void Gradients::ClearAll() {
  SLUICE_CHECK(idle());
  for (Tensor& t : tensors_) Forget(&t);
  std::fill(cells_.begin(), cells_.end(), 0.0);
  if (spill_ != nullptr) spill_->ClearAll();
}

void Gradients::Fail(const absl::Status& failure) {
  if (spill_ != nullptr) spill_->Fail(failure);
}

}  // namespace sluice
