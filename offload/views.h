// offload/views.h
//
// Views: the memory of an acquired unit as DLPack tensors, and the count of those that are alive. A
// slot of HBM is not reused before the last view of it has died, on whatever thread the framework
// deletes it; then an event tells the control thread. A view keeps the HBM arena alive, also beyond
// the runtime's end.
//
// Threads: Show, Hide and Alive on the control thread; MakeView and deleters on any. In a forked
// child deleters do nothing.

#ifndef SLUICE_OFFLOAD_VIEWS_H_
#define SLUICE_OFFLOAD_VIEWS_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/event.h"
#include "core/grid.h"
#include "core/types.h"

namespace sluice {

// DLPack 0.6, the part that is passed (https://dmlc.github.io/dlpack; a stable C layout).
struct DlDevice {
  int32_t device_type;  // 1: CPU, 2: CUDA
  int32_t device_id;
};
struct DlDataType {
  uint8_t code;  // 2: float, 4: bfloat
  uint8_t bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DlManagedTensor* self);
};

class Views {
 public:
  // Keeps `arena` until the last view is gone. `on_death` is called on the control thread, through
  // `inbox`, some time after the last view at some address has died.
  Views(std::shared_ptr<Arena> arena, FloatType type, Inbox* inbox, std::function<void()> on_death);
  ~Views();

  // From Show to Hide, MakeView(unit) gives views of `elements` values at `address`.
  void Show(UnitIndex unit, std::byte* address, int64_t elements);
  void Hide(UnitIndex unit);
  bool Shown(UnitIndex unit) const;  // any thread

  // Errors: FailedPrecondition if the unit is not shown.
  absl::StatusOr<DlManagedTensor*> MakeView(UnitIndex unit);

  // How many views of memory at `address` are alive.
  int64_t Alive(const std::byte* address) const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_VIEWS_H_
