// offload/run/views.h
//
// Views: the memory of an acquired unit as DLPack tensors, and what still uses it. A slot of HBM is
// in use while a view of it is alive, on whatever thread the framework deletes it, and until the
// streams that used it have passed the fences recorded then: where the unit was released, and where
// a view had died. Who can wait for the fences on a stream of the device (OrderAfterUsers) may have
// the slot once no view is alive. A stream uses a slot from when it acquired the unit until it has
// released it and no view is alive, whichever view it reads. A view keeps the HBM arena alive, also
// beyond the runtime's end.
//
// Threads: the control thread, but Show, MakeView, Shown, RecordRelease and deleters on any. In a
// forked child deleters do nothing. Allocates when more views are alive or more fences are waited
// for than ever before.

#ifndef SLUICE_OFFLOAD_RUN_VIEWS_H_
#define SLUICE_OFFLOAD_RUN_VIEWS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/device.h"
#include "core/dlpack.h"
#include "core/event.h"
#include "core/grid.h"
#include "core/types.h"
#include "offload/plan/unit_types.h"

namespace sluice {

class Views {
 public:
  // Keeps `arena` until the last view is gone. `on_free` is called on the control thread, through
  // `inbox`, some time after the last view of an address has died, and after the address has come
  // out of use; `on_error` when waiting for a fence failed. `heeded` (not owned) says whether a
  // view that dies on the default stream should be looked after soon; else Settle does at the next
  // turn. Null: it should.
  Views(std::shared_ptr<Arena> arena, Device* device, Inbox* inbox, std::function<void()> on_free,
        std::function<void(const absl::Status&)> on_error,
        const std::atomic<bool>* heeded = nullptr);
  ~Views();
  // The runtime is going: memory stays only for the views that are alive, and nothing more may be
  // called.
  void End();

  // From Show to Hide, MakeView(unit) gives views of `elements` values of `type` at `address`.
  // Shown again for each acquisition. Any thread.
  void Show(UnitIndex unit, std::byte* address, int64_t elements, ElementType type,
            CallerStream stream);
  // Unless it has been shown again since the last RecordRelease.
  void Hide(UnitIndex unit);
  bool Shown(UnitIndex unit) const;  // any thread

  // Errors: FailedPrecondition if the unit is not shown.
  absl::StatusOr<DlManagedTensor*> MakeView(UnitIndex unit);

  // `stream` releases the unit: the point that it has reached; and of the last release also those
  // of streams that acquired the unit and never released it. Errors: FailedPrecondition if the unit
  // is not shown; those of Device::RecordFence.
  absl::StatusOr<Fences> RecordRelease(UnitIndex unit, CallerStream stream);
  // The memory at `address` is in use until `fences` are complete.
  void HoldUntil(const std::byte* address, Fences fences);
  // Looks after views that have died. Called by itself if that is heeded, but where a stream could
  // not be asked.
  void Settle();

  // Whether a view of memory at `address` is alive, or a fence of its users not complete.
  bool InUse(const std::byte* address) const;
  // Whether a view of it is alive, or has died and its streams were not asked yet.
  bool Viewed(const std::byte* address) const;
  // What is put on `stream` of the device from now on starts when all fences of the users of memory
  // at `address` are complete.
  void OrderAfterUsers(const std::byte* address, StreamKind stream) const;
  // Whether some fence is not complete, so that something will come out of use by itself.
  bool fenced() const { return fenced_ > 0; }
  // Views have died whose streams were not asked yet: Settle does.
  bool dying() const;
  // Some of them died unheeded. Whoever says that deaths are heeded, and then asks, sees those that
  // did not see it.
  bool died_quietly() const;

 private:
  struct Shared;
  struct View;
  struct Hold;
  absl::StatusOr<Fences> Record(std::span<const CallerStream> streams) const;
  void HoldOne(const std::byte* address, Fence fence);
  void EndHold(Hold* hold);

  std::shared_ptr<Shared> shared_;
  Device* const device_;
  Inbox* const inbox_;
  const std::function<void()> on_free_;
  const std::function<void(const absl::Status&)> on_error_;
  std::vector<std::unique_ptr<Hold>> holds_;
  std::vector<Hold*> free_holds_;
  int fenced_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_VIEWS_H_
