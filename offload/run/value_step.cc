#include "offload/run/value_step.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "offload/run/chunk_image.h"
#include "optim/convert.h"

namespace sluice {

namespace {

// Bytes to bytes as they are; anything else is a number.
void ConvertElements(const std::byte* from, ElementType from_type, std::byte* to,
                     ElementType to_type, size_t n) {
  if (from_type.is_bytes() && to_type.is_bytes()) {
    std::memcpy(to, from, n);
  } else {
    Convert(from, from_type.floats(), to, to_type.floats(), n);
  }
}

}  // namespace

void ValueAccess::ChunkStep::Copy::Start(ConstMemoryView from, std::byte* to) {
  op.stream = next == &ChunkStep::OnRead ? StreamKind::kDeviceToHost : StreamKind::kHostToDevice;
  op.from = from;
  op.to = to;
  op.inbox = step->context_.inbox;
  op.event = this;
  step->context_.device->Enqueue(&op);
}

bool ValueAccess::ChunkStep::StatesPass() const {
  if (asked().of_gradient()) return grad_tier() == Tier::kHbm;
  return layout().keep != Keep::kParam && home() != Tier::kPinned;
}

bool ValueAccess::ChunkStep::ParamsPass() const {
  if (asked().of_gradient() || param_tier() == Tier::kPinned) return false;
  return layout().keep == Keep::kParam || (layout().keep == Keep::kAll && asked().write) ||
         (reads_params() && asked().of_parameter());
}

bool ValueAccess::ChunkStep::GradsPass() const {
  return asked().of_gradient() && grad_tier() == Tier::kNvme;
}

const ChunkRun& ValueAccess::ChunkStep::ThisRun() const {
  for (const ChunkRun& run : context_.layout->runs(layout())) {
    if (run.tensor == asked().tensor) return run;
  }
  SLUICE_CHECK_MSG(false, "a chunk without the tensor asked for");
  std::abort();
}

bool ValueAccess::ChunkStep::Take(Request* request, ChunkIndex chunk) {
  request_ = request;
  chunk_ = chunk;
  if (StatesPass()) buffer_ = context_.memory->state_buffers.TryTake();
  if (ParamsPass()) param_buffer_ = context_.memory->param_buffers.TryTake();
  if (GradsPass()) grad_buffer_ = context_.memory->grad_buffers.TryTake();
  if (buffer_.empty() != StatesPass() && param_buffer_.empty() != ParamsPass() &&
      grad_buffer_.empty() != GradsPass())
    return true;
  GiveBack();
  return false;
}

void ValueAccess::ChunkStep::Start() {
  status_ = absl::OkStatus();
  was_read_ = params_were_read_ = grads_were_read_ = false;
  fresh_ = !asked().of_gradient() && !owner_->written_[chunk_.value()];
  loads_left_ = 1;
  if (asked().of_gradient()) return StartGrad();
  if (layout().keep == Keep::kParam) return StartFrozen();
  states_ = context_.memory->state_home[chunk_.value()];
  if (!buffer_.empty()) LoadStates();
  if (!param_buffer_.empty() && reads_params()) LoadParams();
  OnRead(absl::OkStatus());
}

void ValueAccess::ChunkStep::LoadStates() {
  const std::byte* const in_hbm = std::exchange(states_, buffer_.data());
  if (fresh_) return;
  ++loads_left_;
  if (home() == Tier::kHbm) return download_.Start({in_hbm, state_size()}, buffer_.data());
  was_read_ = true;
  context_.store->StartRead(&read_, *state_block(), buffer_, IoPriority::kUrgent);
}

void ValueAccess::ChunkStep::LoadParams() {
  if (fresh_) return;
  ++loads_left_;
  if (param_tier() == Tier::kHbm) {
    return param_download_.Start(
        {ParamHome(), static_cast<size_t>(layout().elements * param_size())}, param_buffer_.data());
  }
  params_were_read_ = true;
  context_.store->StartRead(&param_read_, *param_block(), param_buffer_, IoPriority::kUrgent);
}

// A gradient that is written to HBM passes through the buffer without what lies beside it; to
// NVMe, with that.
void ValueAccess::ChunkStep::StartGrad() {
  grads_ = context_.memory->grad_home[chunk_.value()];
  if (!grad_buffer_.empty()) {
    grads_ = grad_buffer_.data();
    grads_were_read_ = context_.store->was_written(grad_block());
    if (!grads_were_read_) return Prepare();
    return context_.store->StartRead(&grad_read_, grad_block(), grad_buffer_, IoPriority::kUrgent);
  }
  if (buffer_.empty()) return Prepare();
  const std::byte* const in_hbm = std::exchange(grads_, buffer_.data());
  if (asked().write) return Prepare();
  const auto size = static_cast<size_t>(layout().elements * SizeOf(layout().types.grad));
  download_.Start({in_hbm, size}, buffer_.data());
}

// A frozen chunk is its parameters: where they lie, or in a buffer.
void ValueAccess::ChunkStep::StartFrozen() {
  const bool replaced = param_tier() == Tier::kHbm && asked().write;
  if (!param_buffer_.empty() && !replaced) LoadParams();
  OnRead(absl::OkStatus());
}

void ValueAccess::ChunkStep::OnRead(const absl::Status& status) {
  if (status_.ok()) status_ = status;
  if (--loads_left_ > 0) return;
  status_.ok() ? Prepare() : End();
}

void ValueAccess::ChunkStep::Prepare() {
  if (asked().write && !grad_buffer_.empty())
    context_.store->PrepareWrite(&grad_write_, grad_block(), grad_buffer_);
  if (asked().renews()) {
    if (to_drive()) context_.store->PrepareWrite(&write_, *state_block(), buffer_);
    if (param_block()) context_.store->PrepareWrite(&param_write_, *param_block(), param_buffer_);
  }
  context_.executor->Submit(this);
}

void ValueAccess::ChunkStep::Run() {
  if (was_read_) status_ = BlockStore::Verify(read_);
  if (status_.ok() && params_were_read_) status_ = BlockStore::Verify(param_read_);
  if (status_.ok() && grads_were_read_) status_ = BlockStore::Verify(grad_read_);
  if (status_.ok()) {
    if (fresh_) {
      const auto clear = [this](MemoryView buffer, Bytes used) {
        const Bytes transferred = RoundUp(used, context_.placement->io_alignment);
        std::fill_n(buffer.begin(), std::min(buffer.size(), transferred.size()), std::byte{0});
      };
      clear(buffer_, std::max(layout().state_bytes(), layout().grad_bytes()));
      if (layout().keep == Keep::kParam || reads_params())  // else they are made of the masters
        clear(param_buffer_, layout().param_bytes());
    }
    asked().image_of                ? ApplyImage()
    : asked().of_gradient()         ? ApplyGrad(ThisRun())
    : layout().keep == Keep::kParam ? ApplyFrozen(ThisRun())
                                    : Apply(ThisRun());
    if (asked().renews()) RenewParams();
  }
  context_.inbox->Post(this);
}

void ValueAccess::ChunkStep::ApplyGrad(const ChunkRun& run) {
  const FloatType type = layout().types.grad;
  std::byte* const ours = grads_ + run.chunk_offset * SizeOf(type);
  std::byte* const theirs = asked().data + run.tensor_offset * asked().type.size();
  const auto n = static_cast<size_t>(run.elements);
  asked().write ? ConvertElements(theirs, asked().type, ours, type, n)
                : ConvertElements(ours, type, theirs, asked().type, n);
  if (asked().write && !grad_buffer_.empty()) BlockStore::Seal(&grad_write_);
}

void ValueAccess::ChunkStep::ApplyImage() {
  const ValueRequest& request = asked();
  const StateFormat& format = *context_.layout->format();
  for (const ImagePart& part : ImageParts(*context_.layout, layout())) {
    std::byte* const theirs = request.data + part.image_at;
    if (layout().keep == Keep::kParam) {
      std::byte* const ours = FrozenParams() + part.chunk_at * param_size();
      request.write ? std::memcpy(ours, theirs, part.image_bytes)
                    : std::memcpy(theirs, ours, part.image_bytes);
      continue;
    }
    const size_t field = *format.Find(FieldsOf(format, layout().keep)[part.field].id);
    const auto n = static_cast<size_t>(part.elements);
    if (request.write) {
      format.Write(States(), field, part.chunk_at, theirs, FloatType::kF32, n);
    } else {
      format.Read(States(), field, part.chunk_at, theirs, FloatType::kF32, n);
    }
  }
}

void ValueAccess::ChunkStep::ApplyFrozen(const ChunkRun& run) {
  const ValueRequest& request = asked();
  std::byte* const ours = FrozenParams() + run.chunk_offset * param_size();
  std::byte* const theirs = request.data + run.tensor_offset * request.type.size();
  const auto n = static_cast<size_t>(run.elements);
  if (request.write) {
    ConvertElements(theirs, request.type, ours, layout().types.param, n);
  } else {
    ConvertElements(ours, layout().types.param, theirs, request.type, n);
  }
}

void ValueAccess::ChunkStep::Apply(const ChunkRun& run) {
  const ValueRequest& request = asked();
  const FloatType type = request.type.floats();
  std::byte* const theirs = request.data + run.tensor_offset * SizeOf(type);
  const auto n = static_cast<size_t>(run.elements);
  if (request.field == Field::kParam) return ReadRounded(run, theirs);
  const StateFormat& format = *context_.layout->format();
  const size_t field = *format.Find(request.field);
  if (request.write) {
    format.Write(States(), field, run.chunk_offset, theirs, type, n);
  } else {
    format.Read(States(), field, run.chunk_offset, theirs, type, n);
  }
}

// What the masters are as compute copies, in the type asked for.
void ValueAccess::ChunkStep::ReadRounded(const ChunkRun& run, std::byte* out) const {
  const FloatType type = asked().type.floats();
  const FloatType param_type = layout().types.param.floats();
  std::array<std::byte, kCellElements * sizeof(float)> rounded;
  for (int64_t at = 0; at < run.elements; at += kCellElements) {
    const auto count = static_cast<size_t>(std::min(kCellElements, run.elements - at));
    context_.layout->format()->Read(States(), kMasterIndex, run.chunk_offset + at, rounded.data(),
                                    param_type, count);
    Convert(rounded.data(), param_type, out + at * SizeOf(type), type, count);
  }
}

// Writes the parameter copies of the whole chunk and seals what goes to NVMe.
void ValueAccess::ChunkStep::RenewParams() {
  if (layout().keep == Keep::kAll && !reads_params()) {  // else it was, with the master
    context_.layout->format()->Read(States(), kMasterIndex, 0, Params(),
                                    layout().types.param.floats(),
                                    static_cast<size_t>(layout().elements));
  }
  if (to_drive()) BlockStore::Seal(&write_);
  if (param_block()) BlockStore::Seal(&param_write_);
}

// Gradients that live in HBM or on NVMe are in the buffer so far.
void ValueAccess::ChunkStep::StoreGrad() {
  stores_left_ = 1;
  if (!grad_buffer_.empty()) {
    if (status_.ok()) return context_.store->StartWrite(&grad_write_, IoPriority::kUrgent);
    context_.store->Cancel(&grad_write_);
  }
  if (buffer_.empty() || !status_.ok()) return End();
  const int64_t element = SizeOf(layout().types.grad);
  const auto begin = static_cast<size_t>(ThisRun().chunk_offset * element);
  const auto size = static_cast<size_t>(ThisRun().elements * element);
  upload_.Start(buffer_.subspan(begin, size), context_.memory->grad_home[chunk_.value()] + begin);
}

void ValueAccess::ChunkStep::Handle() {
  if (!asked().write) return End();
  if (asked().of_gradient()) return StoreGrad();
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
    const int64_t first = asked().image_of ? 0 : ThisRun().chunk_offset;
    const int64_t elements = asked().image_of ? layout().elements : ThisRun().elements;
    const auto begin = static_cast<size_t>(first * param_size());
    const auto size = static_cast<size_t>(elements * param_size());
    param_upload_.Start(param_buffer_.subspan(begin, size), ParamHome() + begin);
  }
  OnStored(absl::OkStatus());
}

void ValueAccess::ChunkStep::OnStored(const absl::Status& status) {
  if (status_.ok()) status_ = status;
  if (--stores_left_ == 0) {
    if (status_.ok() && asked().renews()) owner_->written_[chunk_.value()] = true;
    End();
  }
}

void ValueAccess::ChunkStep::GiveBack() {
  BufferPool& states = context_.memory->state_buffers;
  BufferPool& params = context_.memory->param_buffers;
  BufferPool& grads = context_.memory->grad_buffers;
  if (!buffer_.empty()) states.Give(std::exchange(buffer_, {}));
  if (!param_buffer_.empty()) params.Give(std::exchange(param_buffer_, {}));
  if (!grad_buffer_.empty()) grads.Give(std::exchange(grad_buffer_, {}));
}

void ValueAccess::ChunkStep::End() {
  GiveBack();
  owner_->EndChunk(this, status_);
}

}  // namespace sluice
