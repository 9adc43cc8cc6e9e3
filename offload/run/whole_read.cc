#include "offload/run/whole_read.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "optim/convert.h"

namespace sluice {

void WholeRead::Start(TensorIndex tensor, std::byte* to, FloatType type, Done done) {
  SLUICE_CHECK(!done_);
  tensor_ = tensor;
  to_ = to;
  type_ = type;
  done_ = std::move(done);
  read_ = 0;
  context_.memory->param_buffers.Take(this);
}

void WholeRead::NextPiece() {
  const TensorLayout& tensor = context_.layout->tensor(tensor_);
  const int64_t size = tensor.types.param.size();
  piece_ = std::min(tensor.elements - read_, static_cast<int64_t>(buffer_.size()) / size);
  const std::byte* const home = context_.memory->param_home[tensor.unit.value()];
  op_.stream = StreamKind::kDeviceToHost;
  op_.from = {home + (tensor.offset + read_) * size, static_cast<size_t>(piece_ * size)};
  op_.to = buffer_.data();
  op_.inbox = context_.inbox;
  op_.event = this;
  context_.device->Enqueue(&op_);
}

void WholeRead::Handle() {
  const TensorLayout& tensor = context_.layout->tensor(tensor_);
  absl::Status status = op_.status;
  if (status.ok()) {
    Convert(buffer_.data(), tensor.types.param.floats(), to_ + read_ * SizeOf(type_), type_,
            static_cast<size_t>(piece_));
    read_ += piece_;
    if (read_ < tensor.elements) return NextPiece();
  } else {
    status = Annotate(status, fmt::format("reading tensor '{}'", tensor.name));
  }
  context_.memory->param_buffers.Give(std::exchange(buffer_, {}));
  std::exchange(done_, nullptr)(status);
}

}  // namespace sluice
