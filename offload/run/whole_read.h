// offload/run/whole_read.h
//
// Reads a tensor's compute copies that are whole in HBM, behind a link, as every rank has them
// where parameters are not shared: piece by piece through a buffer, so that no other rank is
// needed.
//
// Threads: the control thread. Allocates nothing.

#ifndef SLUICE_OFFLOAD_RUN_WHOLE_READ_H_
#define SLUICE_OFFLOAD_RUN_WHOLE_READ_H_

#include <functional>

#include "offload/run/context.h"

namespace sluice {

class WholeRead final : private Event, private BufferPool::Waiter {
 public:
  using Done = std::function<void(const absl::Status&)>;

  explicit WholeRead(const Context& context) : context_(context) {}

  // Fills `to` with the tensor's values in `type`. One at a time; the unit is not written
  // meanwhile. `done` is not called from within.
  void Start(TensorIndex tensor, std::byte* to, FloatType type, Done done);

 private:
  void OnBuffer(MemoryView view) override {
    buffer_ = view;
    NextPiece();
  }
  void NextPiece();
  void Handle() override;  // a piece is in the buffer

  const Context context_;
  TensorIndex tensor_;
  std::byte* to_ = nullptr;
  FloatType type_ = FloatType::kF32;
  Done done_;
  int64_t read_ = 0;   // elements
  int64_t piece_ = 0;  // of them, on the way
  MemoryView buffer_;
  DeviceOp op_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_WHOLE_READ_H_
