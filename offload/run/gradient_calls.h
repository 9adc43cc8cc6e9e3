// offload/run/gradient_calls.h
//
// Calls that hand over gradients, of several tensors each, with one ticket. What a call has of a
// unit whose update still reads the gradients before is held back until that has ended; of each
// tensor, gradients stay in the order of the calls.
//
// Threads: the control thread. Has memory for two calls under way, and for one of each unit held
// back; allocates what more need, and keeps it.

#ifndef SLUICE_OFFLOAD_RUN_GRADIENT_CALLS_H_
#define SLUICE_OFFLOAD_RUN_GRADIENT_CALLS_H_

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "offload/run/grad_exchange.h"
#include "offload/run/gradients.h"
#include "offload/run/tickets.h"
#include "offload/run/updater.h"

namespace sluice {

class GradientCalls {
 public:
  // `exchange`: null if there is one rank.
  GradientCalls(const Context& context, Gradients* gradients, GradExchange* exchange,
                const Updater* updater, Tickets* tickets);
  ~GradientCalls();

  // Completes the ticket once all have arrived, or, where they are lent, are known. Returns whether
  // one of them was handed on at once. Preconditions: Gradients::CheckGiven of each; there is one,
  // and no tensor is named twice.
  bool Take(std::span<const GivenGradient> given, Fence fence, Ticket ticket);
  bool holds() const;  // something back
  // The unit's update has read what it needs.
  void GoOn(UnitIndex unit);
  // Of one tensor, or of all: what is held back is dropped, and done.
  void Forget(std::optional<TensorIndex> tensor);
  // The runtime has failed: what is held back ends so.
  void Fail(const absl::Status& status);

 private:
  struct Call {
    Ticket ticket = 0;
    size_t left = 0;
    absl::Status status;
    Fence fence;
  };
  struct Held {
    GivenGradient gradient;
    Call* call;
  };

  Call* NewCall();
  void HandOn(const Held& held);
  void EndOne(Call* call, const absl::Status& status);

  const Context context_;
  Gradients* const gradients_;
  GradExchange* const exchange_;
  const Updater* const updater_;
  Tickets* const tickets_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<Call*> free_calls_;
  std::vector<std::vector<Held>> held_;  // by unit
  std::vector<Held> going_on_;           // of these, while they go on
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRADIENT_CALLS_H_
