// offload/run/step_transfer.h
//
// A block transfer that ends in a step of its owner: which is told whose transfer it was, and what
// became of it.
//
// Threads: the control thread.

#ifndef SLUICE_OFFLOAD_RUN_STEP_TRANSFER_H_
#define SLUICE_OFFLOAD_RUN_STEP_TRANSFER_H_

#include "nvme/block_store.h"

namespace sluice {

template <typename Owner, typename Item>
class StepTransfer final : public BlockTransfer {
 public:
  using Next = void (Owner::*)(Item*, const absl::Status&);
  StepTransfer(Owner* owner, Item* item, Next next) : owner_(owner), item_(item), next_(next) {}
  void OnDone() override { (owner_->*next_)(item_, status()); }

 private:
  Owner* const owner_;
  Item* const item_;
  const Next next_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_STEP_TRANSFER_H_
