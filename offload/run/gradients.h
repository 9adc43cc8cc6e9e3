// offload/run/gradients.h
//
// The gradients of one accumulation window, where they live: in HBM, in pinned memory, and, through
// GradSpill, on NVMe, chunk by chunk. Takes them as they are handed over, adds what comes again,
// and keeps the sums of squares that norm and overflow check are made of, cell by cell of the
// canonical grid. A lent gradient stays in the caller's memory: it is summed, and later read by the
// update, where it lies.
//
// Threads: the control thread; copies run on workers where the host can reach both ends and the
// gradients stay in memory, else on the device's streams, additions and sums where the gradients
// are: on workers or on the device.
// Memory is taken at construction; a push that can't find a free slot of its own takes one more
// from the heap and keeps it.

#ifndef SLUICE_OFFLOAD_RUN_GRADIENTS_H_
#define SLUICE_OFFLOAD_RUN_GRADIENTS_H_

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/ring_queue.h"
#include "offload/run/context.h"
#include "offload/run/grad_spill.h"

namespace sluice {

// A tensor's gradient, or what is to be added to it, in the caller's memory.
struct GivenGradient {
  TensorIndex tensor;
  ConstMemoryView data;  // its elements in its unit's grad type, from `first` on
  bool lent = false;     // not copied
  int64_t first = 0;     // all that this rank keeps of the tensor is in `data`
};

class Gradients {
 public:
  // Hears of one push. `data` of the push may be reused from then on.
  using Done = std::function<void(const absl::Status&)>;

  explicit Gradients(const Context& context);
  ~Gradients();

  // Gradients that arrive from now on are final, so that their sums may be computed at once.
  void SetBoundary(bool boundary);

  // Errors: FailedPrecondition if the tensor is frozen. Any thread.
  absl::Status CheckTakes(TensorIndex tensor) const;

  // Errors: FailedPrecondition if the tensor is frozen, if it is to be lent and its parameter is
  // not or something of it was given before, or if what was given is lent.
  absl::Status CheckGiven(const GivenGradient& gradient) const;
  // It was given, and comes by Push or Lend unless it is forgotten before. Precondition:
  // CheckGiven.
  void Expect(const GivenGradient& gradient);
  // Sets or adds `gradient`, which is there when `fence` is complete. The fence lives until `done`.
  void Push(const GivenGradient& gradient, const Fence* fence, Done done);
  // `data` is the tensor's gradient, complete now, and stays where it is until an update has read
  // it or it is forgotten.
  void Lend(TensorIndex tensor, ConstMemoryView data);
  // Null: its gradient is at home.
  const std::byte* lent(TensorIndex tensor) const { return tensors_[tensor.value()].lent; }
  bool summing_lent() const { return lent_sums_ > 0; }

  // Calls `done` once everything pushed has arrived and all sums are computed. One at a time.
  void Finish(std::function<void()> done);
  void CancelFinish() { finish_ = nullptr; }  // `done` is not called any more

  bool present(TensorIndex tensor) const { return tensors_[tensor.value()].present; }
  std::span<double> cells() const { return cells_; }  // changed by who knows other ranks' sums
  // Begins to write what is still in buffers of gradients that live on NVMe, so that others find
  // them there, and the buffers free, once this is idle.
  void StoreKept();
  // The tensor's gradient was written, by others, where it lives: present, and no sum is of it yet.
  void Replaced(TensorIndex tensor);
  // Forgets gradients. The memory is reused by the next push, which the caller holds back while an
  // update reads it.
  void ClearAll();
  void Clear(TensorIndex tensor);
  bool idle() const { return active_ == 0 && (spill_ == nullptr || spill_->idle()); }
  bool only_spilling() const { return active_ == 0 && !idle(); }          // to or from drives
  size_t kept() const { return spill_ == nullptr ? 0 : spill_->kept(); }  // buffers, while idle

  void Fail(const absl::Status& failure);  // the runtime has failed: buffers are given back

 private:
  class PushOp;
  class CellTask;
  enum class Given : uint8_t { kNothing, kCopied, kLent };
  // Of a tensor, what lies together in HBM or in pinned memory.
  struct Part {
    int64_t begin;  // in the tensor, elements
    int64_t elements;
    std::byte* home;
    bool in_hbm;
    size_t first_task = 0;  // of the tensor's
    size_t tasks = 0;
  };
  struct Tensor {
    Given given = Given::kNothing;
    const std::byte* lent = nullptr;
    bool present = false;
    bool summed = false;  // of its parts
    int sums_left = 0;
    std::vector<Part> parts;
    RingQueue<PushOp*> queue;                      // the first is under way
    std::vector<std::unique_ptr<CellTask>> tasks;  // of its parts
    std::vector<std::unique_ptr<CellTask>> sums_of_lent;
  };

  void AddParts();
  void Begin(PushOp* push);
  void NextPart(PushOp* push);
  void TakePart(PushOp* push);
  void OnTaken(PushOp* push);
  void CopyPiece(PushOp* push);
  void OnCopied(PushOp* push);
  void OnAdded(PushOp* push);
  void EndPart(PushOp* push, const absl::Status& status);
  void EndWay(PushOp* push, const absl::Status& status);
  void End(PushOp* push);
  void StartSums(TensorIndex tensor);
  void OnSummed(TensorIndex tensor);
  void CheckFinished();
  static void Forget(Tensor* tensor);
  FloatType TypeOf(TensorIndex tensor) const { return context_.layout->tensor(tensor).types.grad; }
  BufferPool* buffers(const Part& part) const;  // that what is added to it passes through

  const Context context_;
  std::vector<Tensor> tensors_;
  std::vector<double> own_cells_;  // unless a device writes sums
  std::span<double> cells_;
  std::unique_ptr<GradSpill> spill_;  // if any live on NVMe
  std::vector<std::unique_ptr<PushOp>> pushes_;
  std::vector<PushOp*> free_pushes_;
  std::function<void()> finish_;
  bool boundary_ = false;
  int active_ = 0;     // pushes and sums under way
  int lent_sums_ = 0;  // of these: sums of what is lent
  TrackId copy_track_ = 0;
  TrackId sum_track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRADIENTS_H_
