// offload/run/grad_spill.h
//
// Gradients that live on NVMe, of one accumulation window. A chunk of them is in a buffer while
// something is set or added in it. When every tensor in it has come it is summed, if gradients are
// final, sealed and written. One that lacks some is kept, so that tensors that come one after
// another are written together; at most half of the buffers are kept so, and the one that was kept
// the longest is written when there would be more. Internal to Gradients.
//
// Who takes buffers of several pools takes one of states first, then one of gradients, then one of
// parameters; and what is kept here holds none of the last. So whoever waits is served in the end.
//
// Threads: the control thread; copies run on the device's streams, additions, sums and checksums on
// workers. Allocates at construction only.

#ifndef SLUICE_OFFLOAD_RUN_GRAD_SPILL_H_
#define SLUICE_OFFLOAD_RUN_GRAD_SPILL_H_

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/intrusive_list.h"
#include "offload/run/context.h"

namespace sluice {

class GradSpill {
 public:
  // A tensor's gradient on its way into the chunks that live here.
  class Push {
   public:
    virtual ~Push() = default;
    // `data` of the push is not read any more.
    virtual void OnSpilled(const absl::Status& status) = 0;

    TensorIndex tensor;
    ConstMemoryView data;  // the tensor's elements from `first` on
    int64_t first = 0;
    const Fence* fence = nullptr;  // of `data`; not owned
    bool adding = false;           // to what is there, else it replaces that

   private:
    friend class GradSpill;
    friend class IntrusiveList<Push>;
    Push* next_ = nullptr;
    size_t next_part = 0;
    size_t under_way = 0;  // parts
    absl::Status status;
  };

  // `cells`: where sums go, by cell. `on_idle` is called whenever nothing is under way any more.
  GradSpill(const Context& context, std::span<double> cells, std::function<void()> on_idle);
  ~GradSpill();

  bool Holds(TensorIndex tensor) const { return !tensors_[tensor.value()].empty(); }
  void SetBoundary(bool boundary) { boundary_ = boundary; }
  void Put(Push* push);

  bool idle() const { return busy_ == 0 && waiting_.empty(); }
  size_t kept() const { return kept_.size(); }  // buffers
  void StoreKept();
  // Whether all is written and summed. If not, and nothing is under way, begins what is left.
  bool Finish();

  // The tensor's gradient was written, by others, into its blocks. Precondition, of these three:
  // idle(); of the first: nothing is kept.
  void Replaced(TensorIndex tensor);
  void Clear(TensorIndex tensor);
  void ClearAll();

  // The runtime has failed: begins nothing more, and keeps nothing.
  void Fail(const absl::Status& failure);

 private:
  class Slot;
  enum class Sum : uint8_t { kNone, kMissing, kThere };
  struct Part {  // of a tensor
    ChunkIndex chunk;
    uint32_t run;  // of the layout
    ChunkRun what;
  };
  struct Chunk {
    Slot* slot = nullptr;  // if it is in a buffer, or about to be
    bool stored = false;   // the block holds what was put since the last Clear
    Sum sum = Sum::kNone;  // kNone: nothing was put
  };

  Chunk& StateOf(ChunkIndex chunk) { return chunks_[index_[chunk.value()]]; }
  void SetSum(Chunk* chunk, Sum sum);
  void Pump();
  void PumpPushes();
  void PumpSums();
  Slot* Occupy(ChunkIndex chunk);
  void Begin(Slot* slot);
  void OnBuffer(Slot* slot);
  void OnRead(Slot* slot, const absl::Status& status);
  void Work(Slot* slot);
  void CopyPiece(Slot* slot);
  void OnCopied(Slot* slot);
  void OnTask(Slot* slot);
  void EndPart(Slot* slot, const absl::Status& status);
  void Keep(Slot* slot);
  void Unkeep(Slot* slot);
  void Store(Slot* slot);
  void OnWritten(Slot* slot, const absl::Status& status);
  void Free(Slot* slot);
  void End(Slot* slot, const absl::Status& status, const char* what);
  void CheckIdle();

  const Context context_;
  const std::span<double> cells_;
  const std::function<void()> on_idle_;
  std::vector<uint32_t> index_;  // by chunk of the model: into the next two
  std::vector<Chunk> chunks_;    // that live here
  std::vector<ChunkIndex> names_;
  std::vector<Part> parts_;
  std::vector<std::span<const Part>> tensors_;  // by tensor, of parts_
  std::vector<uint8_t> put_;                    // by run: since the last Clear
  std::vector<uint8_t> fresh_;                  // by run: since its chunk came into a buffer
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_slots_;
  std::vector<Slot*> kept_;      // the one kept the longest first
  IntrusiveList<Push> waiting_;  // with parts that are not under way
  size_t kept_max_ = 0;
  size_t busy_ = 0;       // slots that are neither free nor kept
  size_t sums_left_ = 0;  // chunks whose sum is missing
  size_t next_sum_ = 0;
  bool boundary_ = false;
  bool finishing_ = false;
  absl::Status failure_;
  Counter* const read_bytes_;
  Counter* const written_bytes_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_GRAD_SPILL_H_
